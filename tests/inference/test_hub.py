"""Bundles from the Hub: a server on this machine speaks as much of its protocol as a download needs."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import torch
from running import PATIENCE, REPOSITORY, Trained

import pipeline
from pipeline.common.errors import UserError

COMMIT = "c0ffee" + "0" * 34
CLIENT = """
import sys, pipeline
def attempt(name):
    try:
        bundle = pipeline.load_bundle(name)
        print("loaded", *bundle.fuse(*sys.argv[1:3], 0.5).flatten()[:4].tolist(), flush=True)
    except pipeline.UserError as error:
        print("refused", str(error).replace(chr(10), "LINE BREAK"), flush=True)
for line in sys.stdin:
    attempt(line.strip())
"""
"""Loads what its input names, and fuses two photographs. The Hub's library reads its settings where it is imported."""


class Hub(BaseHTTPRequestHandler):
    """Repositories are folders; every path that is asked for is remembered."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        files = self.repositories.get(name)
        if files is None:
            self.answer(404, b"", **{"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in path:
            content = files[path.rsplit(f"/{COMMIT}/", 1)[1]]
            self.answer(200, content, ETag=f'"{digest(content)}"', **{"X-Repo-Commit": COMMIT})
        elif "/tree/" in path:
            listed = [
                {"type": "file", "path": each, "size": len(content), "oid": digest(content)}
                for each, content in files.items()
            ]
            self.answer(200, json.dumps(listed).encode())
        else:
            listed = [{"rfilename": each} for each in files]
            self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": listed}).encode())

    def answer(self, code: int, content: bytes, **headers: str) -> None:
        self.send_response(code)
        for key, value in ({"Content-Length": str(len(content)), "Content-Type": "application/json"} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(trained: Trained) -> Iterator[ThreadingHTTPServer]:
    good = {path.name: path.read_bytes() for path in trained.bundle.iterdir()}
    others = {"evil.py": b"raise SystemExit", "sub/config.json": b"{}", "../outside.safetensors": b"", "model.bin": b""}
    changed = good["model.safetensors"][:-1] + b"\x07"
    Hub.repositories = {
        "anna/faces": good | others,
        "anna/other": {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"\0" * 99},
        "anna/empty": {"README.md": b""},
        "anna/changed": good | {"model.safetensors": changed},
    }
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.server_close()


def test_a_bundle_from_the_hub(trained: Trained, hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hub")}
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, *map(str, trained.photographs)],
        env={**os.environ, **settings, "PYTHONPATH": str(REPOSITORY), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    told, heard = client.stdin, client.stdout
    assert told is not None and heard is not None

    def attempt(name: str) -> str:
        told.write(f"{name}\n")
        told.flush()
        return heard.readline().strip()

    with client, contextlib.ExitStack() as stack:
        stack.callback(client.kill)

        expected = pipeline.load_bundle(trained.bundle).fuse(*trained.photographs, 0.5).flatten()[:4].tolist()
        loaded = "loaded " + " ".join(map(str, expected))
        assert attempt("anna/faces") == loaded
        fetched = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*")}
        assert fetched == {path.name for path in trained.bundle.iterdir()}, "a bundle's own files and nothing else"
        assert "not a bundle of latentfuse" in attempt("anna/other")
        assert not [path for path in Hub.asked if path.startswith("/anna/other") and "safetensors" in path]
        assert "not a bundle of latentfuse" in attempt("anna/empty")
        assert "damaged: its SHA-256" in attempt("anna/changed")
        assert "there is none of this name, or it is private" in attempt("anna/nobody")
        hub.shutdown()
        hub.server_close()
        assert attempt("anna/faces") == loaded, "what was fetched before serves without a network"
        offline = attempt("anna/new")
        assert offline.startswith("refused anna/new: no such folder here, and not fetched from http://127.0.0.1:")
        assert "hf download anna/new --local-dir FOLDER" in offline and "LINE BREAK" not in offline
        told.close()
        assert client.wait(PATIENCE) == 0


def test_what_is_here_is_not_asked_for(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    monkeypatch.chdir(trained.root.parent)
    here = trained.bundle.relative_to(trained.root.parent)
    assert len(here.parts) == 2
    assert torch.equal(*(pipeline.load_bundle(each).encode(trained.photographs[0]) for each in (str(here), here)))
    for missing in (Path("anna/faces"), "anna", "./anna/faces", "/anna/faces", "../anna", "anna/faces/x", ""):
        with pytest.raises(UserError, match="not a bundle"):
            pipeline.load_bundle(missing)
