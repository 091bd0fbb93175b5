<?php
// Returns how PHP interprets a request, as JSON: the path from the headers that Zend and Symfony read or else from
// REQUEST_URI, the method with the override header of Symfony and Laravel.
// Run as: php -S 127.0.0.1:PORT router.php
$server = $_SERVER;
$uri = $server['HTTP_X_ORIGINAL_URL'] ?? $server['HTTP_X_REWRITE_URL'] ?? $server['REQUEST_URI'];
$path = rawurldecode((string) parse_url($uri, PHP_URL_PATH));
$method = strtoupper($server['REQUEST_METHOD']);
if ($method === 'POST') {
    $method = strtoupper($server['HTTP_X_HTTP_METHOD_OVERRIDE'] ?? $method);
}
header('Content-Type: application/json');
echo json_encode([
    'handler' => $path === '/admin' || str_starts_with($path, '/admin/') ? 'admin' : 'other',
    'method' => $method,
    'path' => $path,
    'host' => $server['HTTP_X_FORWARDED_HOST'] ?? $server['HTTP_HOST'] ?? null,
    'subject' => $server['HTTP_X_AUTH_SUBJECT'] ?? null,
    'tenant' => $server['HTTP_X_AUTH_TENANT'] ?? null,
    'roles' => $server['HTTP_X_AUTH_ROLES'] ?? null,
], JSON_INVALID_UTF8_SUBSTITUTE);
