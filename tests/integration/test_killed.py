"""Kill -9 at any moment: every restart resumes, and the end is the same, bit for bit."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from forking import Started, narrow, on_a_slow_disk, start_command, start_ranks
from running import PATIENCE, Trained, assert_equal_bits, tiny_arguments

from pipeline.training import checkpoint

RUN = (
    "training.pretrain_steps=4",
    "training.fusion_steps=6",
    "training.micro_batch_size=2",
    "tracking.checkpoint_every=1",
    "tracking.image_every=100",
    "data.workers=1",
)


def with_a_loss_scaler() -> None:
    """As fp16 has one, on the CPU: its state must survive like the rest. On a disk on which many kills hit a save."""
    on_a_slow_disk()
    construct = Accelerator.__init__

    def with_scaler(self: Any, *positional: Any, **named: Any) -> None:
        construct(self, *positional, **named)
        self.scaler = torch.amp.grad_scaler.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)

    Accelerator.__init__ = with_scaler


@dataclass(frozen=True)
class Job:
    """A small run, on ranks of this machine."""

    shards: Path
    ranks: int = 1
    options: tuple[str, ...] = ()
    scaled: bool = True
    prepare: Callable[[], None] = with_a_loss_scaler

    def start(self, folder: Path, run: Path) -> list[Started]:
        arguments = tiny_arguments(run, self.shards, *RUN, *self.options)
        return start_ranks(folder, self.ranks, "run", *arguments, prepare=self.prepare)


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


def kill_until_done(folder: Path, job: Job, seed: int, longest: float, kills: int) -> tuple[int, int]:
    """Start again after each kill, until a run finishes or enough were killed; returns kills, and those in a save."""
    run, ranks, in_save = folder / "run", job.ranks, 0
    before = {"pretrain": 0, "train": 0}
    chance = random.Random(seed)
    for killed in itertools.count():
        allowed = chance.uniform(0, longest) if killed < kills else PATIENCE
        started = job.start(folder / str(killed), run)
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


def kill_often(tmp_path: Path, job: Job, kills: int) -> None:
    straight, ranks = tmp_path / "straight", job.ranks
    asked = time.monotonic()
    started = job.start(tmp_path / "once", straight)
    results = [each.finish() for each in started]
    assert [each.code for each in results] == [0] * ranks, results
    longest = (time.monotonic() - asked) / 2
    if job.scaled:
        assert checkpoint.find(straight).optimizers["scaler"]["_growth_tracker"] != 0, "the loss scale has a state"
    killed = in_save = runs = 0
    while killed < kills:
        folder = tmp_path / f"run{runs}"
        more, more_in_save = kill_until_done(folder, job, runs, longest, kills - killed)
        assert_same_end(straight, folder / "run")
        killed, in_save, runs = killed + more, in_save + more_in_save, runs + 1
    print(f"{ranks} ranks: {killed} kills in {runs} runs, {in_save} in the middle of a save")
    assert in_save or kills < 40, "some kills should have hit a save"


@pytest.mark.parametrize(
    ("ranks", "kills"), [(1, 3), *(pytest.param(*n, marks=pytest.mark.faults) for n in ((1, 100), (2, 40)))]
)
def test_killed_often(trained: Trained, tmp_path: Path, ranks: int, kills: int) -> None:
    kill_often(tmp_path, Job(trained.shards, ranks), kills)


def narrow_and_deterministic() -> None:
    """On a GPU the same numbers come out twice only if sums are taken in the same order."""
    narrow()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_killed_on_a_gpu(trained: Trained, tmp_path: Path, precision: str) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    options = ("training.device=cuda", f"training.mixed_precision={precision}", "speed.cudnn_benchmark=false")
    kill_often(tmp_path, Job(trained.shards, 1, options, precision == "fp16", narrow_and_deterministic), 12)


def test_a_kill_leaves_no_process_and_no_lock(trained: Trained, tmp_path: Path) -> None:
    run, endless = tmp_path / "run", ("training.pretrain_steps=100000", "data.workers=2")
    arguments = ("pretrain", *tiny_arguments(run, trained.shards, *endless))
    first = start_command(tmp_path / "first", *arguments)
    first.wait_for_text("saved")
    first.signal(signal.SIGKILL)  # the trainer alone: its loader's workers must notice
    first.finish()
    second = start_command(tmp_path / "second", *arguments)
    second.wait_for_text("resumed from")
    assert first.group_is_gone()
    second.signal(signal.SIGTERM)
    assert second.finish().code == 75 and second.group_is_gone()
