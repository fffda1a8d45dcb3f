"""A real browser, Debian's Chromium, with a page of a small bundle in it."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import RUNTIME, Visit
from running import latentfuse, make_shards, tiny_arguments

import pipeline
from pipeline.inference.serving import page_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    small = ("data.image_size=64", "model.structure=pyramid", "model.norm=none", "model.blocks=residual")
    arguments = tiny_arguments(root / "run", make_shards(root / "shards"), *small, "training.pretrain_steps=30")
    for command in ("pretrain", "train"):
        assert latentfuse(command, *arguments).code == 0
    assert latentfuse("export", root / "run", root / "bundle").code == 0
    return root / "bundle"


@pytest.fixture(scope="session")
def page_folder(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("web") / "page"
    result = latentfuse("web", bundle_folder, out, "--runtime", RUNTIME)
    assert result.code == 0, result.errors
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None or not (RUNTIME / "dist").is_dir():
        pytest.skip("needs Chromium and onnxruntime-web: make test-web")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any, page_folder: Path, bundle_folder: Path) -> Iterator[Visit]:
    with page_server(page_folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        context = browser.new_context(viewport={"width": 1280, "height": 900}, has_touch=True)
        opened = Visit(context.new_page(), address, pipeline.load_bundle(bundle_folder))
        context.on("request", lambda request: opened.requests.append(request))
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.goto(address)
        opened.settle()
        yield opened
        context.close()
        server.shutdown()
