"""The same app in Flask and in Django: returns how the framework interprets a request, as JSON.

Run as: wsgi_apps.py SERVER PORT. SERVER is waitress, gunicorn, cheroot or wsgiref.
"""

import sys

import django
from django.conf import settings
from django.http import JsonResponse
from django.urls import re_path
from flask import Flask, jsonify, request

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def headers(environ):
    return {
        "subject": environ.get("HTTP_X_AUTH_SUBJECT"),
        "tenant": environ.get("HTTP_X_AUTH_TENANT"),
        "roles": environ.get("HTTP_X_AUTH_ROLES"),
    }


flask_app = Flask(__name__)


def flask_response(handler):
    return jsonify(
        handler=handler, method=request.method, path=request.path, host=request.host, **headers(request.environ)
    )


@flask_app.route("/admin", methods=METHODS)
@flask_app.route("/admin/<path:rest>", methods=METHODS)
def admin(rest=""):
    return flask_response("admin")


@flask_app.route("/", methods=METHODS)
@flask_app.route("/<path:rest>", methods=METHODS)
def other(rest=""):
    return flask_response("other")


def django_view(handler):
    def view(request, **_):
        return JsonResponse(
            {
                "handler": handler,
                "method": request.method,
                "path": request.path,
                "host": request.get_host(),
                **headers(request.META),
            }
        )

    return view


settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", MIDDLEWARE=[], USE_X_FORWARDED_HOST=True
)
django.setup()
urlpatterns = [
    re_path(r"^admin(?:/(?P<rest>.*))?$", django_view("admin")),
    re_path(r"^(?P<rest>.*)$", django_view("other")),
]


def serve(server, port):
    from django.core.wsgi import get_wsgi_application

    if server == "waitress":
        import waitress

        waitress.serve(flask_app, host="127.0.0.1", port=port, threads=8)
    elif server == "cheroot":
        from cheroot.wsgi import Server

        Server(("127.0.0.1", port), flask_app).start()
    elif server == "wsgiref":
        from wsgiref.simple_server import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log_message(self, *_):
                pass

        make_server("127.0.0.1", port, get_wsgi_application(), handler_class=Quiet).serve_forever()
    elif server == "gunicorn":
        from gunicorn.app.base import BaseApplication

        class Gunicorn(BaseApplication):
            def load_config(self):
                self.cfg.set("bind", f"127.0.0.1:{port}")
                self.cfg.set("threads", 8)

            def load(self):
                return get_wsgi_application()

        Gunicorn().run()


serve(sys.argv[1], int(sys.argv[2]))
