"""What a run's folder must be able to do, tried without leaving anything there."""

import errno
import os
import time
from pathlib import Path
from typing import NoReturn

import pytest
from running import listing

from pipeline.cli import run_folder


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "MIN_FREE_GIB", 0.0)


def told(folder: Path) -> dict[str, tuple[str, str, str]]:
    return {check.what: (check.state, check.fix, check.note) for check in run_folder.run_folder(folder)}


def test_a_usual_folder(tmp_path: Path) -> None:
    found = told(tmp_path / "runs" / "new")
    assert not any(fix or note for _, fix, note in found.values())
    assert f"a second job at {tmp_path} would be refused" in found["locks"][0] and "agree" in found["clock"][0]
    assert not listing(tmp_path)


def test_locks_that_do_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.lockf", lambda *_: None)
    state, fix, note = told(tmp_path)["locks"]
    assert "keep nobody out" in state and "nothing will refuse a second job" in note and not fix

    def none(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    state, fix, note = told(tmp_path)["locks"]
    assert "(No locks available)" in state and note and not fix


@pytest.mark.parametrize(("ahead", "which"), [(90, "behind"), (-90, "ahead of")])
def test_clocks_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, which: str) -> None:
    now = time.time()
    monkeypatch.setattr("pipeline.cli.run_folder.time.time", lambda: now + ahead)
    state, fix, note = told(tmp_path)["clock"]
    assert f"s {which} this machine's" in state and "one time server" in note and not fix


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = told(tmp_path)
    assert found.keys() == {"disk"} and "cannot be written" in found["disk"][0] and "set run_dir" in found["disk"][1]
