# Returns how Rack under Puma interprets a request, as JSON, with the method override that Rails enables.
# Run as: puma --bind tcp://127.0.0.1:PORT config.ru
require 'json'
require 'rack'

use Rack::MethodOverride
run lambda { |env|
  request = Rack::Request.new(env)
  path = Rack::Utils.unescape_path(request.path_info).force_encoding('BINARY').encode('UTF-8', undef: :replace)
  body = JSON.generate(
    handler: path == '/admin' || path.start_with?('/admin/') ? 'admin' : 'other',
    method: request.request_method,
    path: path,
    host: request.host,
    subject: env['HTTP_X_AUTH_SUBJECT'],
    tenant: env['HTTP_X_AUTH_TENANT'],
    roles: env['HTTP_X_AUTH_ROLES']
  )
  [200, { 'Content-Type' => 'application/json' }, [body]]
}
