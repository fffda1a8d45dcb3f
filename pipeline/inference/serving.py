"""A web server for one page, on this machine alone: the standard library's, with a few headers more."""

import contextlib
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.common.errors import UserError
from pipeline.inference.web import read_page

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
"""Names under which a browser may ask. Others are of web pages that have their own name lead here."""
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest of the policy is in the page itself
    "Cross-Origin-Opener-Policy": "same-origin",  # these two let the runtime compute in threads
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".wasm": "application/wasm",
    "": "application/octet-stream",
}


class _Handler(SimpleHTTPRequestHandler):
    """Serves the files of the page and nothing else that may be in its folder."""

    extensions_map = TYPES

    def send_head(self) -> BytesIO | BinaryIO | None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in HOSTS:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "ask for 127.0.0.1 or localhost")
            return None
        manifest, asked = read_page(Path(self.directory)), self.path.partition("?")[0]
        if manifest is None or (asked != "/" and asked.removeprefix("/") not in manifest["files"]):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal keeps showing the address."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the browser went away
            super().handle()


def page_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 for the page in `folder`, which may be written later; `serve_forever` starts it.

    Args:
        port: 0: any that is free.

    Raises:
        UserError: if the port is taken.
    """
    try:
        return ThreadingHTTPServer((ADDRESS, port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; name another one, or 0 for any that is free") from None
