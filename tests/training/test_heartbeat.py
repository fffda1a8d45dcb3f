"""Hearts and what else a rank's thread sees; several processes are in integration/test_lost_ranks.py."""

import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from pipeline.common import signals
from pipeline.training import heartbeat as watch
from pipeline.training.heartbeat import Hearts, Watch


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.5)


def wait_for(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_hearts_that_beat() -> None:
    store = HashStore()
    hearts = [Hearts(rank, 3, store) for rank in range(3)]
    time.sleep(1.2)
    assert [each.lost() for each in hearts] == [None] * 3
    for each in hearts:
        each.end()


@pytest.mark.parametrize("silent", [0, 2])
def test_one_that_falls_silent_is_lost_to_all_others(silent: int) -> None:
    store = HashStore()
    hearts = [Hearts(rank, 3, store) for rank in range(3)]
    hearts[silent].end()
    others = [each for each in hearts if each.rank != silent]
    wait_for(lambda: all(each.lost() for each in others))
    assert {each.lost() for each in others} == {f"no sign of life from rank {silent} for 0.5 s"}
    for each in others:
        each.end()


def test_a_store_that_fails_or_hangs_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Connection reset")

    failing = Hearts(1, 2, HashStore())
    monkeypatch.setattr(failing, "beat", refuse)
    wait_for(failing.lost)
    assert failing.lost() == "rank 0 or its launcher cannot be reached"
    hanging = Hearts(0, 1, HashStore())
    monkeypatch.setattr(hanging, "beat", lambda: time.sleep(3))
    wait_for(hanging.lost)
    assert hanging.lost() == "rank 0 or its launcher has not answered for 0.5 s"


def test_the_file_stop_is_taken_away_and_asks_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(signals, "request", asked.append)
    other, main = (Watch(tmp_path, rank, 1, lambda _: None) for rank in (1, 0))
    (tmp_path / "STOP").touch()
    wait_for(lambda: asked)
    for each in (main, other):
        each.end()
    assert asked == [f"the file {tmp_path / 'STOP'}"] and not (tmp_path / "STOP").exists()


@pytest.mark.parametrize("launched", [True, False])
def test_a_launcher_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: bool) -> None:
    """Without a launcher another parent means nothing: `nohup`, and the shell has ended."""
    asked: list[str] = []
    monkeypatch.setattr(signals, "request", asked.append)
    monkeypatch.setattr(signals, "PARENT", -1)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    watching = Watch(tmp_path, 1, 1, lambda _: None)
    time.sleep(0.3)
    watching.end()
    assert asked == (["the death of its launcher"] if launched else [])
