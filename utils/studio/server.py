"""The studio's page and what it asks for, over HTTP: a Flask application around a studio (studio.py).

Only pages that this server sent can ask for anything: a request must name a host of ours, so that a name
elsewhere which points here is refused, and its body must be JSON, which browsers let no other site send.
"""
import socket
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from flask import Flask, jsonify, request, send_file
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server

from utils.errors import UserError
from utils.studio.jobs import sentence

HERE = Path(__file__).parent
LARGEST_BODY = 2**20
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; "
          "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
FILES = {"/": "page.html", "/studio.css": "page.css", "/studio.js": "page.js"}


class Quiet(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_request(self, *_args):
        pass


def is_local(host):
    """Whether nobody but this machine reaches a host's name or address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_app(studio, hosts=None):
    """The application. hosts: names under which it may be asked, None = any."""
    app = Flask("studio", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=LARGEST_BODY)
    for address, name in FILES.items():
        app.add_url_rule(address, name, lambda name=name: send_file(HERE / name, max_age=0))
    app.add_url_rule("/models", "models", lambda: jsonify(studio.models()))
    app.add_url_rule("/state", "state", lambda: jsonify(studio.state()))
    for name in ("generate", "edit", "cancel", "undo", "remove", "export"):
        app.add_url_rule(f"/{name}", name, answer(getattr(studio, name)), methods=["POST"])

    @app.before_request
    def check_host():
        if hosts is not None and urlsplit(f"//{request.headers.get('Host', '')}").hostname not in hosts:
            raise UserError("the studio does not answer to this host name")

    @app.get("/view/<numbers>")
    def view(numbers):
        return studio.takes.page([int(number) for number in numbers.split("-") if number.isdecimal()])

    @app.get("/files/<int:number>/<name>")
    def file(number, name):
        return send_file(studio.takes.export(number, name), as_attachment=True)

    @app.after_request
    def protect(response):
        framed = request.path.startswith("/view/")
        response.headers["Content-Security-Policy"] = "frame-ancestors 'self'" if framed else POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    @app.errorhandler(Exception)
    def refuse(error):
        if isinstance(error, HTTPException):
            return jsonify(error=error.description), error.code
        return jsonify(error=sentence(error)), 400 if isinstance(error, UserError) else 500

    return app


def answer(function):
    """A view that calls function (dict of the request's JSON) -> plain values."""
    def view():
        data = request.get_json()
        if not isinstance(data, dict):
            raise UserError("the page sent something else than it should; load it again")
        return jsonify(function(data))

    return view


def open_server(studio, host, port):
    """A server that listens; ``serve_forever`` answers. port 0: any that is free. UserError where it cannot
    have the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}, port {port} ({reason}); choose another --port or "
                        "--host") from error
    hosts = {"127.0.0.1", "localhost", "::1", host} if is_local(host) else None
    with listening:  # the server has a copy of it
        return make_server(host, port, make_app(studio, hosts), threaded=True, request_handler=Quiet,
                           fd=listening.fileno())


def address(server):
    """Where a browser finds a server."""
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"http://{host}:{server.port}/"
