"""A rank that dies, hangs or cannot go on: the others end within a minute, in order, and the restart resumes."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forking import Started, narrow, start_ranks
from running import ENDLESS_JOB, Trained, children, make_shards, tiny_arguments, wait_for

from pipeline.data.shards.reader import ShardReader
from pipeline.training import checkpoint
from pipeline.training import heartbeat as watch
from pipeline.training.optimizing import OptimizerSteps

MINUTE = 60
"""Within so many seconds the others end."""
IMPATIENCE = 3.0
"""Seconds of silence after which a rank is lost, in most of these tests."""


def begin(
    tmp_path: Path, shards: Path, ranks: int, *options: str, prepare: Callable[[], None] = narrow
) -> list[Started]:
    """Ranks in the middle of pre-training."""
    started = start_ranks(
        tmp_path, ranks, "pretrain", *tiny_arguments(tmp_path / "run", shards, *ENDLESS_JOB, *options), prepare=prepare
    )
    started[0].wait_for_text("saved")
    return started


def status(tmp_path: Path) -> dict[str, object]:
    value = json.loads((tmp_path / "run" / "status.json").read_text())
    assert isinstance(value, dict)
    return value


def assert_resumes(tmp_path: Path, shards: Path, ranks: int) -> None:
    newest, passed_over = checkpoint.newest(tmp_path / "run" / "pretrain" / "checkpoints")
    assert newest is not None and not passed_over
    arguments = tiny_arguments(tmp_path / "run", shards, *ENDLESS_JOB, f"training.pretrain_steps={newest.step + 2}")
    results = [each.finish() for each in start_ranks(tmp_path / "again", ranks, "pretrain", *arguments)]
    assert [each.code for each in results] == [0] * ranks, results
    assert f"resumed from {newest.path}" in results[0].out
    told = status(tmp_path)
    assert {"state": "finished", "exit_code": 0, "message": None}.items() <= told.items()
    assert told["step"] == newest.step + 2


@pytest.mark.parametrize(("ranks", "victim"), [(2, 1), pytest.param(3, 0, marks=pytest.mark.faults)])
def test_a_rank_that_is_killed(trained: Trained, tmp_path: Path, ranks: int, victim: int) -> None:
    options = (f"training.global_batch_size={4 * ranks}",)
    started = begin(tmp_path, trained.shards, ranks, *options)
    started[victim].signal_group(signal.SIGKILL)
    for rank, each in enumerate(started):
        result = each.finish(MINUTE)
        if rank != victim:
            result.assert_one_line("lost", "the same command resumes", code=76)
        assert each.group_is_gone()
    if victim:
        assert status(tmp_path)["exit_code"] == 76 and status(tmp_path)["state"] == "failed"
    newest, _ = checkpoint.newest(tmp_path / "run" / "pretrain" / "checkpoints")
    assert newest is not None and newest.step >= 10
    if ranks == 2:
        assert_resumes(tmp_path, trained.shards, 2)


def impatient() -> None:
    narrow()
    watch.BEAT_SECONDS, watch.PATIENCE_SECONDS, watch.LOOK_SECONDS = 0.2, IMPATIENCE, 0.1


@pytest.mark.parametrize(
    ("victim", "prepare"),
    [
        (1, impatient),
        *(pytest.param(*each, marks=pytest.mark.faults) for each in ((0, impatient), (0, narrow), (1, narrow))),
    ],
)
def test_a_rank_that_hangs(trained: Trained, tmp_path: Path, victim: int, prepare: Callable[[], None]) -> None:
    """It keeps its connections, as a machine that has lost its network does: only its heart tells."""
    started = begin(tmp_path, trained.shards, 2, prepare=prepare)
    started[victim].signal_group(signal.SIGSTOP)
    other = started[1 - victim]
    other.finish(MINUTE).assert_one_line("lost another rank", "resumes", code=76)
    assert other.group_is_gone()
    started[victim].signal_group(signal.SIGKILL)
    started[victim].finish()
    if victim == 1:
        message = status(tmp_path)["message"]
        assert isinstance(message, str) and "no sign of life from rank 1" in message


def test_a_suspended_job_goes_on(trained: Trained, tmp_path: Path) -> None:
    """SLURM stops and continues every rank; no heart has beaten in between, and none is lost."""
    started = begin(tmp_path, trained.shards, 2, prepare=impatient)
    for each in started:
        each.signal_group(signal.SIGSTOP)
    time.sleep(IMPATIENCE + 1)  # that many seconds have to pass
    before = started[0].text()
    for each in started:
        each.signal_group(signal.SIGCONT)
    wait_for(lambda: started[0].text().count("saved") > before.count("saved") + 2)
    (tmp_path / "run" / "STOP").touch()
    assert [each.finish().code for each in started] == [75, 75]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.faults), 2])
def test_a_loader_worker_that_is_killed(trained: Trained, tmp_path: Path, ranks: int) -> None:
    """As for want of memory: a rank that has lost its worker is lost to the others."""
    started = begin(tmp_path, trained.shards, ranks)
    (worker,) = children(started[-1].pid)
    os.kill(worker, signal.SIGKILL)
    results = [each.finish() for each in started]
    results[-1].assert_one_line("a loader worker was killed, often for want of memory", "resumes", code=76)
    assert [each.code for each in results] == [76] * ranks
    assert status(tmp_path)["exit_code"] == 76


def test_a_rank_that_cannot_go_on_stops_all_in_order(trained: Trained, tmp_path: Path) -> None:
    """A bad image is met by one rank; all save, and one line says which rank and which image."""
    shards = tmp_path / "shards"
    shutil.copytree(trained.shards, shards)
    started = begin(tmp_path, shards, 2)
    sample = ShardReader(shards / "train").locate(4)
    with (shards / "train" / sample.shard).open("r+b") as tar:
        tar.seek(sample.offset + sample.length // 2)
        tar.write(bytes(8))
    results = [each.finish() for each in started]
    assert [each.code for each in results] == [2, 2], results
    told = [each.errors for each in results]
    assert f"sample {sample.key}: damaged" in told[0] and told[1] == "" and told[0].count("\n") == 1, told
    assert "saved" in results[0].out.splitlines()[-1]
    assert status(tmp_path)["state"] == "failed"


def test_a_shared_mistake_is_said_once(trained: Trained, tmp_path: Path) -> None:
    cases = {
        "nowhere": (f"data.shards={tmp_path / 'nowhere'}",),
        "no such file": ("perceptual.weights=none.safetensors", f"run_dir={tmp_path / 'run'}"),
        "unknown key": ("training.foo=3",),
        "is not 2 ranks": ("training.micro_batch_size=4", "training.global_batch_size=4"),
    }
    for number, (message, options) in enumerate(cases.items()):
        init = ("--init", trained.run)
        arguments = ("train", *tiny_arguments(tmp_path / "run", trained.shards, *ENDLESS_JOB, *options), *init)
        results = [each.finish() for each in start_ranks(tmp_path / str(number), 2, *arguments, prepare=narrow)]
        assert [each.code for each in results] == [2, 2], results
        assert message in results[0].errors and results[0].errors.count("\n") == 1 and not results[1].errors, results


def on_rank_one_from_elsewhere() -> None:
    """As on a node with its own copy of the shards, which is older."""
    if os.environ["RANK"] == "1":
        sys.argv += ["--set", f"data.shards={os.environ['ELSEWHERE']}"]


def test_ranks_with_other_shards_are_refused(trained: Trained, tmp_path: Path) -> None:
    """They would train to the end, and nothing could resume that."""
    elsewhere = make_shards(tmp_path / "elsewhere", first_seed=50)
    arguments = ("pretrain", *tiny_arguments(tmp_path / "run", trained.shards, *ENDLESS_JOB))
    ranks = start_ranks(tmp_path, 2, *arguments, prepare=on_rank_one_from_elsewhere, ELSEWHERE=str(elsewhere))
    results = [each.finish() for each in ranks]
    assert [each.code for each in results] == [2, 2], results
    expected = f"rank 1: {elsewhere / 'train'}: other training data than rank 0 has there; bring this node's up to date"
    results[0].assert_one_line(expected)
    assert not (tmp_path / "run" / "pretrain").exists()


def looks_elsewhere() -> None:
    """Rank 1 would find another checkpoint than the main one does, of a run that goes on saving."""
    narrow()
    if os.environ["RANK"] == "1":
        checkpoint.find = checkpoint.newest = None  # type: ignore[assignment]


def reads_another() -> None:
    """Rank 1 reads other weights in a folder of the same name, as on a disk of its own."""
    narrow()
    load = checkpoint.load
    if os.environ["RANK"] == "1":
        checkpoint.load = lambda path: dataclasses.replace(load(path), digest="another")


@pytest.mark.parametrize("prepare", [looks_elsewhere, reads_another])
def test_all_ranks_start_from_the_same_weights(trained: Trained, tmp_path: Path, prepare: Callable[[], None]) -> None:
    options = ("training.global_batch_size=8", "training.micro_batch_size=2")
    arguments = ("train", *tiny_arguments(tmp_path / "run", trained.shards, *options), "--init", trained.run)
    for how in ("started", "resumed"):
        results = [each.finish() for each in start_ranks(tmp_path / how, 2, *arguments, prepare=prepare)]
        if prepare is reads_another:
            results[0].assert_one_line("rank 1: ", "not the weights that rank 0 reads")
            assert results[1].code == 2 and not results[1].errors
            shutil.copytree(trained.run / "train", tmp_path / "run" / "train", dirs_exist_ok=True)
        else:
            assert [each.code for each in results] == [0, 0], results
            assert ("already finished" if how == "resumed" else "started from") in results[0].out


def nan_on_one_rank() -> None:
    """From step 4 on the images of rank 1 give a loss that is not a number."""
    narrow()
    from pipeline.training.pretrain import PretrainStage

    backward, step = OptimizerSteps.backward, PretrainStage.step

    def counted(self: PretrainStage, number: int, batch: object) -> object:
        OptimizerSteps.backward = poisoned if number >= 4 and os.environ["RANK"] == "1" else backward  # type: ignore[method-assign]
        return step(self, number, batch)  # type: ignore[arg-type]

    def poisoned(self: OptimizerSteps, loss: torch.Tensor) -> None:
        backward(self, loss + float("inf"))

    PretrainStage.step = counted  # type: ignore[assignment, method-assign]


def test_a_loss_that_is_not_finite_on_one_rank(trained: Trained, tmp_path: Path) -> None:
    options = ("training.max_skipped_steps=3", "tracking.checkpoint_every=2")
    arguments = ("pretrain", *tiny_arguments(tmp_path / "run", trained.shards, *ENDLESS_JOB, *options))
    results = [each.finish() for each in start_ranks(tmp_path, 2, *arguments, prepare=nan_on_one_rank)]
    assert [each.code for each in results] == [2, 2], results
    assert "pretrain: the gradient was not finite 3 times in a row" in results[0].errors and not results[1].errors
    newest, _ = checkpoint.newest(tmp_path / "run" / "pretrain" / "checkpoints")
    assert newest is not None and newest.step == 4, "none was saved while steps were skipped"
    (folder,) = (tmp_path / "run" / "pretrain").glob("not-finite-step-*")
    assert folder.name == "not-finite-step-00000007" and str(folder) in results[0].errors
    for rank in (0, 1):
        dump = json.loads((folder / f"rank{rank:04d}.json").read_text())
        assert dump["step"] == 7 and dump["rank"] == rank and len(dump["batch"]) == 4
        assert dump["gradients_not_finite"] and not dump["parameters_not_finite"]
        assert 0 <= dump["images"]["min"] < dump["images"]["mean"] < dump["images"]["max"] <= 255
