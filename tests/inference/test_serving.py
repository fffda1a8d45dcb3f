"""The server of the page: its files and nothing else, to this machine alone, under headers that keep it to itself."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.inference.serving import page_server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    """The port of a server for a folder that is filled after it has started; a secret lies in it and beside it."""
    page = tmp_path / "page"
    with page_server(page, 0) as server:
        page.mkdir()
        (page / "manifest.json").write_text(
            json.dumps({"latentfuse": "0", "page": 1, "files": ["index.html", "a.mjs"]})
        )
        (page / "index.html").write_text("<p>page</p>")
        (page / "a.mjs").write_text("export default 1")
        for folder in (page, tmp_path):
            (folder / "secret").write_text("secret")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def asked(port: int, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def test_files_come_with_their_types_and_headers(served: int) -> None:
    index, script = asked(served, "/"), asked(served, "/a.mjs")
    assert (index.status, index.read()) == (200, b"<p>page</p>")
    assert index.headers["Content-Type"] == "text/html; charset=utf-8"
    assert script.headers["Content-Type"] == "text/javascript; charset=utf-8"
    for answer in (index, script):
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["/secret", "/../secret", "/%2e%2e/secret", "//secret", "/./secret", "/manifest.json/.."]
)
def test_what_is_not_the_pages_is_not_there(served: int, path: str) -> None:
    answer = asked(served, path)
    assert answer.status == 404
    assert b"secret</" not in answer.read()


def test_a_page_of_another_name_that_leads_here_gets_nothing(served: int) -> None:
    """What a hostile page does that lets its own name point to 127.0.0.1."""
    answer = asked(served, "/", Host="hostile.example")
    assert answer.status == 421
    assert b"page</p>" not in answer.read()
    assert asked(served, "/", Host=f"localhost:{served}").status == 200


def test_a_port_that_is_taken(served: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--port {served}: .*name another one"):
        page_server(tmp_path, served)
