"""Progress counts what it names, not the batches that the work comes in."""

import io
import re
import sys

import pytest

from pipeline.common import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_count_units(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_SECONDS", -1.0)
    batches = [range(32), range(32), range(6)]
    assert list(progress.progress(batches, "effects", 70, "pairs", len)) == batches
    assert capsys.readouterr().err.splitlines() == [f"effects: {done} of 70 pairs" for done in (32, 64, 70)]
    assert list(progress.progress("ab", "shard", 2, "shards")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["shard: 1 of 2 shards", "shard: 2 of 2 shards"]


def test_quick_work_prints_nothing_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress(range(3), "shard", 3, "shards")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_counts_units(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    assert list(progress.progress([range(32), range(6)], "effects", 38, "pairs", len)) == [range(32), range(6)]
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())  # without colours
    assert "effects" in shown and "38/38 pairs" in shown
