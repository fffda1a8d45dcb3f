"""Examples in the documents run as they are."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import REPOSITORY, Trained

import pipeline
from pipeline.data.synth.faces import draw_factors, paint
from pipeline.inference.loaded import LoadedBundle

API, NOTEBOOK = REPOSITORY / "docs" / "api.md", REPOSITORY / "docs" / "fuse_faces.ipynb"
WALKTHROUGH = REPOSITORY / "docs" / "walkthrough.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MOST_OUTPUT = 4096
"""Bytes of what the notebook's cells have printed."""


def run(name: str, code: list[str]) -> None:
    names: dict[str, Any] = {}
    for number, part in enumerate(code, 1):
        exec(compile(part, f"{name}, example {number}", "exec"), names)


def test_the_examples_of_the_api_run(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    for index, name in enumerate("abc"):
        paint(draw_factors(7, index)).save(tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    run("api.md", EXAMPLE.findall(API.read_text()))
    assert {"fused.png", "strip.png", "grid.png"} <= {path.name for path in tmp_path.iterdir()}


def test_every_public_name_has_an_example() -> None:
    code = "\n".join(EXAMPLE.findall(API.read_text()))
    methods = {name for name in dir(LoadedBundle) if not name.startswith("_")} - {"load"}
    missing = {name for name in methods if f"bundle.{name}" not in code}
    missing |= {name for name in pipeline.__all__ if not re.search(rf"\b{name}\b", code)}
    assert not missing


def test_the_notebook_runs(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    (tmp_path / "docs").mkdir()
    shutil.copytree(trained.bundle, tmp_path / "runs" / "demo" / "bundle")
    monkeypatch.chdir(tmp_path / "docs")
    run(NOTEBOOK.name, ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"])
    assert (tmp_path / "docs" / "mean.png").exists()


def test_the_notebook_is_one_and_carries_no_pictures() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5) and notebook.keys() == {
        "cells",
        "metadata",
        "nbformat",
        "nbformat_minor",
    }
    usual = {"cell_type", "id", "metadata", "source"}
    for cell in notebook["cells"]:
        more = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell["cell_type"] in ("code", "markdown") and cell.keys() == usual | more
        assert all(isinstance(line, str) for line in cell["source"])
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)
    outputs = json.dumps([cell.get("outputs") for cell in notebook["cells"]])
    assert len(outputs) < MOST_OUTPUT


def walkthrough(*options: str) -> str:
    script = [sys.executable, str(WALKTHROUGH.with_suffix(".py")), *options]
    return subprocess.run(script, capture_output=True, text=True, check=True).stdout


def commands(page: str) -> list[str]:
    return re.findall(r"^\$ (.*)$", page, re.MULTILINE)


@pytest.mark.slow
def test_the_session_can_be_recorded() -> None:
    """All its commands end as they should, or the script fails; and the page has these, of more faces."""
    page = walkthrough("--short")
    assert commands(page) == [each.replace("2000", "60") for each in commands(WALKTHROUGH.read_text())]
    assert "(exit code 75)" in page and "resumed" in page and "bundle" in page
