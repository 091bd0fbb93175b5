"""What Starlette under uvicorn reads of a request, as JSON. Run as: asgi_app.py PORT."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


def answers(handler):
    async def answer(request):
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

    return answer


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
app = Starlette(
    routes=[
        Route("/admin", answers("admin"), methods=METHODS),
        Route("/admin/{rest:path}", answers("admin"), methods=METHODS),
        Route("/{rest:path}", answers("other"), methods=METHODS),
    ]
)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
