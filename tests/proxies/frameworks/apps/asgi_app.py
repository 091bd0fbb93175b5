"""Returns how Starlette under uvicorn interprets a request, as JSON. Run as: asgi_app.py PORT."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


def endpoint(handler):
    async def respond(request):
        return JSONResponse(
            {
                "handler": handler,
                "method": request.method,
                "path": request.url.path,
                "host": request.url.hostname,
                "subject": request.headers.get("x-auth-subject"),
                "tenant": request.headers.get("x-auth-tenant"),
                "roles": request.headers.get("x-auth-roles"),
            }
        )

    return respond


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
app = Starlette(
    routes=[
        Route("/admin", endpoint("admin"), methods=METHODS),
        Route("/admin/{rest:path}", endpoint("admin"), methods=METHODS),
        Route("/{rest:path}", endpoint("other"), methods=METHODS),
    ]
)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
