"""A server for one page and one case, on 127.0.0.1 and behind a random token."""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import unquote, urlsplit

from livprep.errors import UsageError
from livprep.viewing.scene import Scene

LOOPBACK = "127.0.0.1"
_FILES = {
    "": ("page.html", "text/html; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "viewer.css": ("viewer.css", "text/css; charset=utf-8"),
    "niivue.umd.js": ("niivue/niivue.umd.js", "text/javascript; charset=utf-8"),
    "LICENSE": ("niivue/LICENSE", "text/plain; charset=utf-8"),
}
_HEADERS = {
    # Everything the page loads comes from here; niivue decodes its font and color maps from data and blob URLs.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Viewer:
    """Serves a scene until it is closed.

    Parameters
    ----------
    scene
        What is shown.
    port
        0 takes a free one.

    Raises
    ------
    UsageError
        USAGE: the port is taken.
    """

    def __init__(self, scene: Scene, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(24)
        try:
            self._server = _Server(scene, self.token, port)
        except OSError as error:
            raise UsageError("USAGE", f"port {port} on {LOOPBACK} cannot be used: {error.strerror}") from error
        self.port: int = self._server.server_address[1]

    @property
    def url(self) -> str:
        """Address of the page, with its token."""
        return f"http://{LOOPBACK}:{self.port}/{self.token}/"

    def serve(self) -> None:
        """Answer requests until `close` is called from elsewhere."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, scene: Scene, token: str, port: int) -> None:
        self.scene, self.token = scene, token
        super().__init__((LOOPBACK, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "livprep", ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a request that names this server and bears its token; refuse any other."""
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            self._refuse(HTTPStatus.FORBIDDEN, "another host")  # a foreign name that was made to point here
            return
        token, _, rest = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "wrong token")
            return
        found = self._find(rest)
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such thing")
            return
        self._send(HTTPStatus.OK, *found)

    def _find(self, rest: str) -> tuple[bytes, str] | None:
        if rest in _FILES:
            name, kind = _FILES[rest]
            return resources.files("livprep.viewing").joinpath(name).read_bytes(), kind
        if rest == "case.json":
            return json.dumps(self.server.scene.describe()).encode(), "application/json"
        if rest.startswith("volume/") and rest.endswith(".nii"):
            volume = self.server.scene.nifti(rest[len("volume/") : -len(".nii")])
            return None if volume is None else (volume, "application/octet-stream")
        return None

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, f"{status.value}: {why}\n".encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (*_HEADERS.items(), ("Content-Type", kind), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a log of requests would hold the token."""
