// Returns how Node's http with the URL class interprets a request, as JSON. Run as: node_app.js PORT.
const http = require('node:http');

http.createServer((request, response) => {
  let path;
  try {
    path = decodeURIComponent(new URL(request.url, 'http://base.example').pathname);
  } catch {
    response.writeHead(400).end();
    return;
  }
  const header = (name) => request.headers[name];
  const body = JSON.stringify({
    handler: path === '/admin' || path.startsWith('/admin/') ? 'admin' : 'other',
    method: request.method,
    path,
    host: header('host'),
    subject: header('x-auth-subject'),
    tenant: header('x-auth-tenant'),
    roles: header('x-auth-roles'),
  });
  request.resume().on('end', () => response.end(body));
}).listen(Number(process.argv[2]), '127.0.0.1');
