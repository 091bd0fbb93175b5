// What Express reads of a request, as JSON, with method-override and with the proxy in front trusted, as its guide
// says. Run as: express_app.js PORT, where the packages are in NODE_PATH.
const express = require('express');
const methodOverride = require('method-override');

const app = express();
app.set('trust proxy', true);
// Paths are compared with their case, as Portcullis does.
const router = express.Router({ caseSensitive: true });
app.use(methodOverride());
const answer = (handler) => (request, response) =>
  response.json({
    handler,
    method: request.method,
    path: request.baseUrl + request.path,
    host: request.hostname,
    subject: request.get('x-auth-subject'),
    tenant: request.get('x-auth-tenant'),
    roles: request.get('x-auth-roles'),
  });
router.use('/admin', answer('admin'));
router.use(answer('other'));
app.use(router);
app.listen(Number(process.argv[2]), '127.0.0.1');
