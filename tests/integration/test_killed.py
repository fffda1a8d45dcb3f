"""Kill -9 at any moment: every restart resumes, and the end is the same, bit for bit."""

import signal
import time
from pathlib import Path

import pytest
from forking import narrow_and_scaled, random_moments, start_command, start_ranks
from running import Trained, assert_equal_bits, tiny_arguments, trained_once

from pipeline.training import checkpoint

RUN = (
    "training.pretrain_steps=4",
    "training.fusion_steps=6",
    "training.micro_batch_size=2",
    "tracking.checkpoint_every=1",
    "tracking.image_every=100",
    "data.workers=1",
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_once(tmp_path_factory)


def newest_steps(run: Path) -> dict[str, int]:
    """The step that each stage would resume from."""
    found = {stage: checkpoint.newest(run / stage / "checkpoints")[0] for stage in ("pretrain", "train")}
    return {stage: each.step if each else 0 for stage, each in found.items()}


def assert_same_end(straight: Path, run: Path) -> None:
    for stage, steps in (("pretrain", 4), ("train", 6)):
        first, second = (checkpoint.steps(each / stage / "checkpoints")[-1] for each in (straight, run))
        assert first.name == second.name == f"step-{steps:08d}"
        assert_equal_bits(first, second)
    assert not list(run.rglob("*.tmp*")), "what a killed save left is swept away"


def kill_until_done(shards: Path, folder: Path, ranks: int, seed: int, longest: float, kills: int) -> tuple[int, int]:
    """Start again after each kill, until a run finishes or enough were killed; returns kills, and those in a save."""
    run, in_save = folder / "run", 0
    before = {"pretrain": 0, "train": 0}
    for killed, moment in enumerate(random_moments(seed, longest)):
        allowed = moment if killed < kills else 90
        arguments = ("run", *tiny_arguments(run, shards, *RUN))
        started = start_ranks(folder / str(killed), ranks, *arguments, prepare=narrow_and_scaled)
        deadline = time.monotonic() + allowed
        while time.monotonic() < deadline and any(each.process.exitcode is None for each in started):
            time.sleep(0.002)
        ended = [each.process.exitcode for each in started]
        if ended == [0] * ranks:
            return killed, in_save
        assert set(ended) <= {None, 0}, [each.finish() for each in started]
        for each in started:
            each.signal_group(signal.SIGKILL)
        results = [each.finish() for each in started]
        in_save += bool(list(run.glob("*/checkpoints/.step-*.tmp")))
        for stage, step in before.items():
            if step and f"{stage}: " in results[0].out:
                assert f"{stage}: resumed from" in results[0].out or "already finished" in results[0].out, results
        after = newest_steps(run)
        assert all(after[stage] >= step for stage, step in before.items()), "nothing saved was lost"
        before = after
    raise AssertionError("unreachable")


def kill_often(shards: Path, tmp_path: Path, ranks: int, kills: int) -> None:
    straight = tmp_path / "straight"
    asked = time.monotonic()
    arguments = ("run", *tiny_arguments(straight, shards, *RUN))
    started = start_ranks(tmp_path / "once", ranks, *arguments, prepare=narrow_and_scaled)
    results = [each.finish() for each in started]
    assert [each.code for each in results] == [0] * ranks, results
    longest = (time.monotonic() - asked) / 2
    assert checkpoint.find(straight).optimizers["scaler"]["scale"] != 2.0**10, "the loss scale has moved"
    killed = in_save = runs = 0
    while killed < kills:
        folder = tmp_path / f"run{runs}"
        more, more_in_save = kill_until_done(shards, folder, ranks, runs, longest, kills - killed)
        assert_same_end(straight, folder / "run")
        killed, in_save, runs = killed + more, in_save + more_in_save, runs + 1
    print(f"{ranks} ranks: {killed} kills in {runs} runs, {in_save} in the middle of a save")
    assert in_save or kills < 50, "some kills should have hit a save"


def test_killed_six_times(trained: Trained, tmp_path: Path) -> None:
    kill_often(trained.shards, tmp_path, 1, 6)


@pytest.mark.faults
@pytest.mark.parametrize(("ranks", "kills"), [(1, 100), (2, 40)])
def test_killed_often(trained: Trained, tmp_path: Path, ranks: int, kills: int) -> None:
    kill_often(trained.shards, tmp_path, ranks, kills)


def test_a_kill_leaves_no_process_and_no_lock(trained: Trained, tmp_path: Path) -> None:
    run, endless = tmp_path / "run", ("training.pretrain_steps=100000", "data.workers=2")
    arguments = ("pretrain", *tiny_arguments(run, trained.shards, *endless))
    first = start_command(tmp_path / "first", *arguments)
    first.wait_for(lambda: "saved" in first.text())
    first.signal(signal.SIGKILL)  # the trainer alone: its loader's workers must notice
    first.finish()
    second = start_command(tmp_path / "second", *arguments)
    second.wait_for(lambda: "resumed from" in second.text())
    assert first.group_is_gone()
    second.signal(signal.SIGTERM)
    assert second.finish().code == 75 and second.group_is_gone()
