// Returns how Express interprets a request, as JSON, with method-override and with the proxy trusted, as its guide
// recommends. Run as: express_app.js PORT, with the packages in NODE_PATH.
const express = require('express');
const methodOverride = require('method-override');

const app = express();
app.set('trust proxy', true);
// Paths are case-sensitive, as in Portcullis.
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
