"""The page of a bundle as a folder: what is in it, what it replaces, and networks that agree with torch."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import Trained, file_size_limit, latentfuse, listing

import pipeline
from pipeline.common.errors import UserError
from pipeline.inference import onnx_files, web
from pipeline.inference.bundle import Bundle
from pipeline.models import regions

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is None, reason="latentfuse[web] is not installed"
)
FILES = {
    *("manifest.json", "index.html", "page.js", "page.css", "encoder.onnx", "generator.onnx", "region.onnx"),
    *("regions.bin", "example-1.jpg", "example-2.jpg", "example-3.jpg", "example-4.jpg"),
}


@pytest.fixture(scope="module")
def page(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that the command wrote, for tests that only read it."""
    out = tmp_path_factory.mktemp("web") / "page"
    result = latentfuse("web", trained.bundle, out)
    assert (result.code, result.errors) == (0, "")
    assert result.out.startswith(f"{out}: ")
    return out


def read_manifest(page: Path) -> dict[str, Any]:
    return dict(json.loads((page / "manifest.json").read_text()))


@needs_onnx
def test_the_folder_is_what_the_manifest_says(page: Path) -> None:
    manifest = read_manifest(page)
    assert listing(page) == FILES == set(manifest["files"])
    assert [element["name"] for element in manifest["elements"]] == [f"element {n}" for n in range(1, 6)]
    masks = np.frombuffer((page / "regions.bin").read_bytes(), np.uint8).reshape(-1, 32, 32)
    assert manifest["regions"] == list(regions.NAMES)
    expected = regions.mask("mouth", regions.celeba(32, 32), 32)
    assert np.array_equal(masks[manifest["regions"].index("mouth")], expected.numpy())


@needs_onnx
def test_the_policy_names_what_may_be_asked(page: Path, trained: Trained, tmp_path: Path) -> None:
    """From the page itself and, where the runtime was not given, of one folder of a CDN, by version and hash."""
    index = (page / "index.html").read_text()
    assert "default-src 'none'" in index
    assert f"connect-src 'self' {web.CDN};" in index
    runtime = read_manifest(page)["runtime"]
    assert [each["url"] for each in runtime] == [web.CDN + name for name in web.RUNTIME_FILES]
    assert all(each["integrity"].startswith("sha384-") for each in runtime)

    package = tmp_path / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    for name in web.RUNTIME_FILES:
        (package / "dist" / name).write_bytes(name.encode())
    out = tmp_path / "page"
    assert latentfuse("web", trained.bundle, out, "--runtime", package).code == 0
    assert listing(out) == FILES | set(web.RUNTIME_FILES)
    assert "https:" not in (out / "index.html").read_text()
    for each in read_manifest(out)["runtime"]:
        assert (out / each["url"]).read_bytes() == each["url"].encode()
        assert each["integrity"] == web.integrity(each["url"].encode())


@needs_onnx
def test_half_the_size_and_still_the_same_picture(page: Path, trained: Trained, tmp_path: Path) -> None:
    whole = sum(path.stat().st_size for path in page.glob("*.onnx"))
    made = web.write_page(trained.bundle, tmp_path / "half", half=True)
    half = sum(path.stat().st_size for path in (tmp_path / "half").glob("*.onnx"))
    assert half < 0.75 * whole  # of a model this small, much is not weights
    assert 0 < made.difference < onnx_files.HALF_TOLERANCE


@needs_onnx
def test_networks_say_nothing_of_this_machine(page: Path) -> None:
    for path in page.glob("*.onnx"):
        content = path.read_bytes()
        assert str(Path.cwd()).encode() not in content
        assert b".py" not in content


@needs_onnx
@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_networks_that_differ_are_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """As if the exporter had made a mistake: the bundle changes after its networks were written."""
    measure = onnx_files.largest_difference

    def changed(bundle: Bundle, folder: Path) -> float:
        next(bundle.model.generator.parameters()).mul_(factor)
        return measure(bundle, folder)

    monkeypatch.setattr(onnx_files, "largest_difference", changed)
    with pytest.raises(UserError, match="the exported networks differ from torch by"):
        web.write_page(trained.bundle, tmp_path / "page")
    assert listing(tmp_path) == set()


@needs_onnx
def test_the_files_fuse_as_the_bundle_does(page: Path, trained: Trained) -> None:
    """With photographs, not with what the export itself is checked on."""
    bundle, networks = pipeline.load_bundle(trained.bundle), onnx_files.Networks(page)
    a, b = (bundle.load_image(photograph) for photograph in trained.photographs)
    mask = regions.mask("left", regions.celeba(32, 32), 32)
    for lambdas, where in ((torch.tensor([1, 0.5, 0, 0, 1]), None), (torch.zeros(5), mask)):
        assert (networks.fuse(a, b, lambdas, where) - bundle.fuse(a, b, lambdas, where)).abs().max() < 1e-4


@needs_onnx
def test_a_page_is_replaced_and_nothing_else(page: Path, trained: Trained, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(page, tmp_path / "page"))
    (copy / "page.css").write_text("old")
    assert latentfuse("web", trained.bundle, copy).code == 0
    assert (copy / "page.css").read_text() != "old"
    (copy / "notes.txt").write_text("mine")
    latentfuse("web", trained.bundle, copy).assert_one_line("notes.txt in it is not the page's")
    assert (copy / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    latentfuse("web", trained.bundle, other).assert_one_line(str(other), "is not a page of latentfuse")
    latentfuse("web", trained.bundle, trained.bundle).assert_one_line("is not a page of latentfuse")


@needs_onnx
def test_a_full_disk_leaves_the_old_page(page: Path, trained: Trained, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(page, tmp_path / "page"))
    with file_size_limit(5000):
        result = latentfuse("web", trained.bundle, copy)
    assert result.code == 2
    assert listing(tmp_path) == {"page", *(f"page/{name}" for name in FILES)}


@needs_onnx
def test_what_is_no_bundle_or_no_runtime(trained: Trained, tmp_path: Path) -> None:
    latentfuse("web", tmp_path / "none", tmp_path / "page").assert_one_line("not a bundle")
    latentfuse("web", trained.bundle, tmp_path / "page", "--runtime", tmp_path).assert_one_line(
        "--runtime", "npm install onnxruntime-web@"
    )
    assert listing(tmp_path) == set()


def test_without_the_extra_it_says_what_to_install(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    latentfuse("web", trained.bundle, tmp_path / "page").assert_one_line("pip install 'latentfuse[web]'")
    latentfuse("play", trained.bundle, "--port", 0).assert_one_line("pip install 'latentfuse[web]'")
    assert listing(tmp_path) == set()


@pytest.mark.parametrize("text", ["", "[]", '{"latentfuse": "0"}', '{"latentfuse": "0", "page": 1, "files": [1]}', "["])
def test_other_folders_are_no_pages(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert web.read_page(tmp_path) is None
