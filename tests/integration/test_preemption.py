"""Signals to real processes: the work is saved, the exit code says what happened, and it can go on."""

import os
import signal
import time
from pathlib import Path

import pytest
from running import (
    Trained,
    finish,
    latentfuse,
    listing,
    make_photographs,
    start,
    tiny_arguments,
    trained_once,
    wait_for,
)

from pipeline.training import checkpoint

ENDLESS = ("training.pretrain_steps=100000", "tracking.checkpoint_every=100000", "tracking.image_every=100000")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_once(tmp_path_factory)


def test_sigterm_saves_and_the_same_command_resumes(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("run", *tiny_arguments(run, trained.shards, *ENDLESS, "data.workers=1"))
    wait_for(lambda: list((run / "tensorboard").rglob("events*")), process)
    time.sleep(0.3)
    refused = latentfuse("pretrain", *tiny_arguments(run, trained.shards, *ENDLESS))
    refused.assert_one_line(str(run), "another job is running here")
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: to the loader's workers too
    result = finish(process)
    result.assert_one_line("stopped by SIGTERM; the same command resumes", code=75)
    saved, passed_over = checkpoint.newest(run / "pretrain" / "checkpoints")
    assert saved is not None and saved.step >= 1 and not passed_over
    assert f"pretrain: saved {saved.path}" in result.out
    further = latentfuse("pretrain", *tiny_arguments(run, trained.shards, f"training.pretrain_steps={saved.step + 1}"))
    assert further.code == 0 and f"pretrain: resumed from {saved.path}" in further.out


def test_ctrl_c_saves_and_exits_with_130(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(
        "train", *tiny_arguments(run, trained.shards, "training.fusion_steps=100000", *ENDLESS), "--init", trained.run
    )
    wait_for(lambda: list((run / "tensorboard").rglob("events*")), process)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    result = finish(process)
    result.assert_one_line("stopped by SIGINT; the same command resumes", code=130)
    saved, passed_over = checkpoint.newest(run / "train" / "checkpoints")
    assert saved is not None and saved.step >= 1 and not passed_over
    assert not list(run.rglob("*.tmp*"))


def test_ctrl_c_before_the_first_step(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("pretrain", *tiny_arguments(run, trained.shards, *ENDLESS))
    time.sleep(0.8)  # it is importing torch
    assert not (run / "tensorboard").exists()
    os.killpg(process.pid, signal.SIGINT)
    finish(process).assert_one_line("Ctrl-C", code=130)
    assert not (run / "pretrain").exists()


@pytest.mark.parametrize("command", ["shard", "synth", "evaluate"])
def test_ctrl_c_to_what_only_writes_files(trained: Trained, tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    if command == "shard":
        source = make_photographs(tmp_path / "source", 400)
        process = start("shard", source, out, "--split", "0.3", "--workers", "2", "--image-size", "512")
        wait_for(out.exists, process)
    elif command == "synth":
        process = start("synth", out, "--count", "20000", "--workers", "2")
        wait_for(lambda: list(out.rglob("*.jpg")), process)
    else:
        process = start("evaluate", trained.bundle, trained.shards / "test", "--out", out)
        time.sleep(0.8)
    os.killpg(process.pid, signal.SIGINT)
    finish(process, 30).assert_one_line("Ctrl-C", code=130)
    assert not [name for name in (listing(out) if out.exists() else ()) if Path(name).name.startswith(".")]
    assert not list(tmp_path.rglob("manifest.json"))
