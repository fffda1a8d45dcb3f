"""Heartbeats and what else a rank's thread sees; several processes are in integration/test_lost_ranks.py."""

import os
import threading
import time
from pathlib import Path

import pytest
from running import wait_for
from torch.distributed import HashStore  # type: ignore[attr-defined]

from pipeline.common import signals
from pipeline.training import heartbeat
from pipeline.training.heartbeat import PATIENCE_SECONDS, Heartbeat, Monitor


@pytest.mark.parametrize("silent", [None, 0, 2])
def test_a_rank_that_falls_silent_is_lost_to_all_others(monkeypatch: pytest.MonkeyPatch, silent: int | None) -> None:
    """By a clock of the test: the threads sleep."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 1000)
    store, clock = HashStore(), [0.0]
    ranks = [Heartbeat(rank, 3, store, now=lambda: clock[0]) for rank in range(3)]
    others = [each for each in ranks if each.rank != silent]
    for clock[0] in range(0, 20 * int(PATIENCE_SECONDS)):
        for each in others:
            each.beat()
        verdicts = {each.look() for each in others}
        assert verdicts == {None} or (silent is not None and clock[0] > PATIENCE_SECONDS)
    lost = None if silent is None else f"no sign of life from rank {silent} for {PATIENCE_SECONDS:g} s"
    assert verdicts == {lost}
    for each in ranks:
        each.end()


def test_a_store_that_fails_or_hangs_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "PATIENCE_SECONDS", 0.5)

    def refuse(*_: object) -> None:
        raise RuntimeError("Connection reset")

    failing = Heartbeat(1, 2, HashStore())
    monkeypatch.setattr(failing, "beat", refuse)
    wait_for(failing.lost)
    assert failing.lost() == "rank 0 or its launcher cannot be reached"
    hanging, released = Heartbeat(0, 1, HashStore()), threading.Event()
    monkeypatch.setattr(hanging, "beat", released.wait)
    wait_for(hanging.lost)
    assert hanging.lost() == "rank 0 or its launcher has not answered for 0.5 s"
    released.set()
    hanging.end()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a monitor stopped its process for."""
    causes: list[str] = []
    monkeypatch.setattr(heartbeat, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(signals, "request", causes.append)
    return causes


def test_the_file_stop_is_removed_and_asks_to_stop(tmp_path: Path, asked: list[str]) -> None:
    other, main = (Monitor(tmp_path, rank, 1, lambda _: None) for rank in (1, 0))
    (tmp_path / "STOP").touch()
    wait_for(lambda: asked)
    for each in (main, other):
        each.end()
    assert asked == [f"the file {tmp_path / 'STOP'}"] and not (tmp_path / "STOP").exists()


def test_a_file_stop_that_was_there_before_counts_only_when_touched_again(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "STOP").touch()
    monitor = Monitor(tmp_path, 0, 1, lambda _: None)
    time.sleep(0.2)
    assert not asked and (tmp_path / "STOP").exists()
    os.utime(tmp_path / "STOP", ns=(1, 1))
    wait_for(lambda: asked)
    monitor.end()
    assert not (tmp_path / "STOP").exists()


@pytest.mark.parametrize("launched", [True, False])
def test_a_launcher_that_dies(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    """Without a launcher another parent means nothing: `nohup`, and the shell has ended."""
    monkeypatch.setattr(signals, "PARENT", -1)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monitor = Monitor(tmp_path, 0, 1, lambda _: None)
    for stops in (1, 2):  # between two of them it has looked at everything
        (tmp_path / "STOP").touch()
        wait_for(lambda: sum(each.startswith("the file") for each in asked) == stops)  # noqa: B023 (called at once)
    monitor.end()
    assert asked.count("the death of its launcher") == launched
