"""Bytes from elsewhere: all of them or one line that names the URL, in bounded time, and no process is left."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from running import gone, wait_for

from pipeline.common.errors import UserError
from pipeline.data import remote
from pipeline.data.remote import BLOCK, NotThere, blocks

CONTENT = bytes(range(256)) * 10_000
"""Two whole blocks and a half."""


class Handler(SimpleHTTPRequestHandler):
    """Files; /cut/ ends in the middle, /stalled/ sends half and then nothing, /busy/ answers the second time only."""

    released: threading.Event
    asked: set[str]

    def do_GET(self) -> None:
        kind, _, file = self.path[1:].partition("/")
        if kind == "secret":
            return self.send_error(403)
        if kind == "busy" and self.path not in self.asked:
            self.asked.add(self.path)
            return self.send_error(503)
        if kind not in ("cut", "stalled", "busy"):
            return super().do_GET()
        content = Path(self.translate_path(f"/{file}")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if kind == "busy" else content[: len(content) // 2])
        if kind == "stalled":
            self.released.wait(60)
        self.close_connection = True
        return None

    def log_message(self, *message: object) -> None:
        """Not in the tests' output."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def server(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.released, Handler.asked = threading.Event(), set()
    served = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Handler(*given, directory=str(file.parent)))
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}).start()
    yield f"http://127.0.0.1:{served.server_port}"
    Handler.released.set()
    served.shutdown()
    served.server_close()


def refused(url: str) -> str:
    """Why `url` cannot be read, behind its name."""
    with pytest.raises(UserError) as caught:
        list(blocks(url))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{url}: "), message
    return message.removeprefix(f"{url}: ").removeprefix("cannot be read: ")


def test_all_bytes_in_blocks(file: Path) -> None:
    fsspec.filesystem("memory").pipe("/remote/a.tar", CONTENT)
    for url in (str(file), f"file://{file}", f"pipe:cat {file}", "memory://remote/a.tar"):
        read = list(blocks(url))
        assert [len(block) for block in read] == [BLOCK, BLOCK, len(CONTENT) - 2 * BLOCK]
        assert b"".join(read) == CONTENT


def test_http(server: str) -> None:
    for path in ("a.tar", "busy/a.tar"):
        assert b"".join(blocks(f"{server}/{path}")) == CONTENT
    assert "Response payload is not completed" in refused(f"{server}/cut/a.tar")
    assert "Cannot connect to host 127.0.0.1:9" in refused("http://127.0.0.1:9/a.tar")
    for path in ("none.tar", "secret/a.tar"):
        with pytest.raises(NotThere):
            next(blocks(f"{server}/{path}"))


def test_a_server_that_stalls(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.3)
    assert refused(f"{server}/stalled/a.tar") == "too slow: less than 1 MiB came in 0.3 s"


@pytest.mark.parametrize(
    "command", ["sleep 60", "head -c 3000 {}; sleep 60", "while printf x; do sleep 0.05; done", "cat {}; sleep 60"]
)
def test_a_source_that_brings_too_little_ends(file: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.5)
    assert refused(f"pipe:{command.format(file)}") == "too slow: less than 1 MiB came in 0.5 s"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("cat {}; exit 4", "its command ended with code 4"),  # behind its last byte
        ("head -c 3000 {}; echo trying >&2; echo no credentials >&2; exit 5", "no credentials"),
        ("echo 'mkdir: No such file or directory\nConnection closed (255)' >&2; false", "Connection closed (255)"),
        ("echo 'ssh: node-404 after 404 ms: no route' >&2; false", "ssh: node-404 after 404 ms: no route"),
    ],
)
def test_a_command_that_fails(file: Path, command: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        list(blocks(f"pipe:{command.format(file)}"))
    assert str(caught.value).endswith(f": cannot be read: {reason}")
    assert not isinstance(caught.value, NotThere)


@pytest.mark.parametrize(
    "url",
    [
        "{}/none.tar",
        "file://{}/none.tar",
        "memory://none.tar",
        "pipe:cat {}/none.tar",
        "pipe:echo 'curl: (22) The requested URL returned error: 404' >&2; exit 22",
        "pipe:echo 'An error occurred (404) when calling HeadObject' >&2; exit 1",
    ],
)
def test_a_file_that_is_not_there(tmp_path: Path, url: str) -> None:
    with pytest.raises(NotThere):
        list(blocks(url.format(tmp_path)))


def test_what_is_no_file_and_no_known_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refused(str(tmp_path / "fifo")) == "not a file"
    assert refused(str(tmp_path)) == "Is a directory"
    assert refused("ftp9://there/a.tar").startswith("ftp9:// is not known; give a path, http://")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert "pip install 'latentfuse[remote]'" in refused("https://there/a.tar")


def test_leaving_early_ends_a_commands_whole_group(tmp_path: Path, file: Path) -> None:
    pids = tmp_path / "pids"
    with closing(blocks(f"pipe:sleep 60 & echo $! $$ > {pids}; cat {file}; wait")) as source:
        assert next(source) == CONTENT[:BLOCK]
    wait_for(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))
