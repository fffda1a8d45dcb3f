"""Signals to real processes: the work is saved, the exit code says what happened, and it can go on."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forking import Started, narrow, on_a_slow_disk, start_command, start_ranks, until_released
from running import (
    Trained,
    accelerate_launch,
    children,
    finish,
    free_port,
    gone,
    latentfuse,
    listing,
    make_photographs,
    scalars,
    start,
    tiny_arguments,
    wait_for,
)

from pipeline.training import checkpoint
from pipeline.training import heartbeat as watch

ENDLESS = ("training.pretrain_steps=100000", "tracking.checkpoint_every=100000", "tracking.image_every=100000")


def saved_step(run: Path, stage: str = "pretrain") -> checkpoint.Checkpoint:
    saved, passed_over = checkpoint.newest(run / stage / "checkpoints")
    assert saved is not None and saved.step >= 1 and not passed_over
    return saved


def test_sigterm_saves_and_the_same_command_resumes(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = tiny_arguments(run, trained.shards, *ENDLESS, "data.workers=1")
    job = start_command(tmp_path / "job", "run", *arguments, prepare=narrow)
    job.wait_for_text("pretrain 1/")
    refused = latentfuse("pretrain", *tiny_arguments(run, trained.shards, *ENDLESS))
    refused.assert_one_line(str(run), "another job is running here")
    job.signal_group(signal.SIGTERM)  # as a scheduler does: to the loader's workers too
    result = job.finish()
    result.assert_one_line("stopped by SIGTERM; the same command resumes", code=75)
    saved = saved_step(run)
    assert json.loads((run / "status.json").read_text())["saved_step"] == saved.step
    assert f"pretrain: saved {saved.path}" in result.out
    again = (*arguments, "--set", f"training.pretrain_steps={saved.step + 1}")
    further = start_command(tmp_path / "again", "pretrain", *again, prepare=narrow).finish()
    assert further.code == 0 and f"pretrain: resumed from {saved.path}" in further.out


def test_ctrl_c_saves_and_exits_with_130(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = tiny_arguments(run, trained.shards, "training.fusion_steps=100000", *ENDLESS)
    job = start_command(tmp_path / "job", "train", *arguments, "--init", trained.run)
    job.wait_for_text("train 1/")
    job.signal_group(signal.SIGINT)
    job.finish().assert_one_line("stopped by SIGINT; the same command resumes", code=130)
    assert saved_step(run, "train") and not list(run.rglob("*.tmp*"))


@pytest.mark.parametrize("source", ["shards", "stream"])
def test_sigterm_while_the_data_do_not_come(trained: Trained, tmp_path: Path, source: str) -> None:
    """A disk or a server that has stalled: what was trained is saved, and neither worker nor tool lives on."""
    run, pid, opened = tmp_path / "run", tmp_path / "pid", tmp_path / "opened"
    opened.write_text("")
    tar = trained.shards / "train" / "shard-000000.tar"
    # Sixty times it delivers four images, of which a worker holds a hundred back.
    stalls = f"pipe:test $(wc -l < {opened}) -lt 60 || {{ echo $$ > {pid}; sleep 1000; }}; echo >> {opened}; cat {tar}"
    options = ["data.workers=1", *ENDLESS, *([f"data.stream={stalls}"] if source == "stream" else [])]
    job = start_command(tmp_path / "job", "pretrain", *tiny_arguments(run, trained.shards, *options), prepare=narrow)
    job.wait_for_text("pretrain 1/")
    if source == "shards":
        os.kill(children(job.pid)[0], signal.SIGSTOP)
    else:
        job.wait_for(lambda: pid.exists() and pid.read_text())
    before = ""
    while before != (before := job.text()):  # what was read before is trained yet; then it waits
        time.sleep(0.5)
    job.signal(signal.SIGTERM)
    job.finish().assert_one_line("stopped by SIGTERM; the same command resumes", code=75)
    assert saved_step(run)
    assert job.group_is_gone() and (source == "shards" or gone(int(pid.read_text())))


def into_a_pipe() -> None:
    narrow()
    sys.stdout = open(os.environ["PIPE"], "w")  # noqa: SIM115


def test_a_closed_pipe_saves(trained: Trained, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    arguments = tiny_arguments(tmp_path / "run", trained.shards, *ENDLESS)
    job = start_command(tmp_path / "job", "pretrain", *arguments, prepare=into_a_pipe, PIPE=str(tmp_path / "pipe"))
    with (tmp_path / "pipe").open() as pipe:  # as `| head` does
        assert any(line.startswith("pretrain 1/") for line in pipe), job.finish()
    job.finish().assert_one_line("stopped by a closed pipe", code=75)
    assert saved_step(tmp_path / "run")


def test_ctrl_c_before_the_first_step(trained: Trained, tmp_path: Path) -> None:
    """As a user starts it, while it is importing torch."""
    run = tmp_path / "run"
    process = start("pretrain", *tiny_arguments(run, trained.shards, *ENDLESS))
    wait_for(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), process)
    os.killpg(process.pid, signal.SIGINT)
    finish(process).assert_one_line("Ctrl-C", code=130)
    assert not run.exists()


@pytest.mark.parametrize("command", ["shard", "synth"])
def test_ctrl_c_to_what_only_writes_files(tmp_path: Path, command: str) -> None:
    out, source = tmp_path / "out", make_photographs(tmp_path / "source", 60)
    options = ("--split", "0.3", "--samples-per-shard", "2") if command == "shard" else ("--count", "20000")
    arguments = (source, out, *options) if command == "shard" else (out, *options)
    job = start_command(
        tmp_path / "job", command, *arguments, "--workers", 2, prepare=on_a_slow_disk, FSYNC_SECONDS="0.3"
    )
    job.wait_for(lambda: list(out.rglob("*.tar" if command == "shard" else "*.jpg")))
    job.signal_group(signal.SIGINT)
    job.finish().assert_one_line("Ctrl-C", code=130)
    assert not [name for name in listing(out) if Path(name).name.startswith(".")]
    assert not list(tmp_path.rglob("manifest.json")) and job.group_is_gone()


def slow_to_evaluate() -> None:
    """It does not end by itself."""
    narrow()
    from pipeline.evaluation import report

    def slow(faces: Any, *_: Any) -> None:
        faces.measured(len(faces), "nothing", lambda _: until_released("measuring"))

    report.image_pass = slow  # type: ignore[assignment,attr-defined]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_command_that_only_measures(trained: Trained, tmp_path: Path, number: int, code: int) -> None:
    arguments = ("evaluate", trained.bundle, trained.shards / "test", "--out", tmp_path / "out")
    job = start_command(tmp_path, *arguments, prepare=slow_to_evaluate, RELEASE=str(tmp_path / "never"))
    job.wait_for_text("measuring")
    job.signal(number)
    job.finish().assert_one_line("stopped by SIGTERM" if code == 75 else "stopped by Ctrl-C", code=code)
    assert not (tmp_path / "out").exists()


def term_to_all(started: list[Started], run: Path) -> None:
    for each in started:
        each.signal_group(signal.SIGTERM)


def usr1_to_one(started: list[Started], run: Path) -> None:
    started[-1].signal(signal.SIGUSR1)


def stop_file(started: list[Started], run: Path) -> None:
    (run / "STOP").touch()
    wait_for(lambda: not (run / "STOP").exists())


HOW = {"SIGTERM": term_to_all, "SIGUSR1": usr1_to_one, "STOP": stop_file}
SHARED = ("training.global_batch_size=8", "training.micro_batch_size=2")


def assert_stopped(started: list[Started], how: str, run: Path) -> None:
    """All ranks, at once, in order, with one line."""
    results = [each.finish() for each in started]
    assert [each.code for each in results] == [75] * len(started), results
    expected = f"stopped by the file {run / 'STOP'}" if how == "STOP" else f"stopped by {how}"
    results[0].assert_one_line(expected, "the same command resumes", code=75)
    assert all(not each.errors for each in results[1:]), results
    assert all(each.group_is_gone() for each in started)
    assert not (run / "STOP").exists() and not list(run.rglob("*.tmp*"))
    assert '"stopped"' in (run / "status.json").read_text()


def narrow_and_watchful() -> None:
    """The file STOP is seen at once."""
    narrow()
    watch.LOOK_SECONDS = 0.1


@pytest.mark.parametrize("how", HOW)
def test_two_ranks_agree_and_save(trained: Trained, tmp_path: Path, how: str) -> None:
    run = tmp_path / "run"
    arguments = tiny_arguments(run, trained.shards, *SHARED, *ENDLESS, "tracking.log_every=1", "data.workers=1")
    started = start_ranks(tmp_path, 2, "pretrain", *arguments, prepare=narrow_and_watchful)
    started[0].wait_for_text("pretrain 3/")
    HOW[how](started, run)
    assert_stopped(started, how, run)
    assert saved_step(run).step >= 3


def slow_to_warm_up() -> None:
    narrow_and_watchful()
    from pipeline.data.loading.loader import FaceImages

    micro_batches = FaceImages.micro_batches

    def slow(self: FaceImages, *arguments: Any) -> Any:
        until_released("warming up")
        return micro_batches(self, *arguments)

    FaceImages.micro_batches = slow  # type: ignore[assignment,method-assign]


def slow_to_save() -> None:
    narrow_and_watchful()
    import torch

    save = torch.save

    def slow(*arguments: Any) -> None:
        until_released("writing")
        save(*arguments)

    torch.save = slow  # type: ignore[assignment]


SLOW = {"warming up": slow_to_warm_up, "writing": slow_to_save, "measuring": slow_to_evaluate}


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("warming up", "SIGTERM"),
        ("writing", "SIGUSR1"),
        ("measuring", "SIGTERM"),
        *(
            pytest.param(phase, how, marks=pytest.mark.faults)
            for phase in SLOW
            for how in ("SIGTERM", "SIGUSR1", "STOP")
        ),
    ],
)
def test_whatever_the_ranks_are_doing(trained: Trained, tmp_path: Path, phase: str, how: str) -> None:
    """A rank that is told ends measuring where it stands, the others after it: nothing else would release them."""
    run, release = tmp_path / "run", tmp_path / "release"
    arguments = tiny_arguments(run, trained.shards, *SHARED, "tracking.checkpoint_every=1")
    started = start_ranks(tmp_path / "first", 2, "run", *arguments, prepare=SLOW[phase], RELEASE=str(release))
    started[0].wait_for_text(phase)
    HOW[how](started, run)
    if phase != "measuring" or how != "SIGTERM":  # which goes to all
        release.touch()
    assert_stopped(started, how, run)
    results = [each.finish() for each in start_ranks(tmp_path / "second", 2, "run", *arguments, prepare=narrow)]
    assert [each.code for each in results] == [0, 0], results
    assert "Made:" in results[0].out and ("resumed from" in results[0].out) == (phase != "warming up")


def test_a_signal_in_the_last_save_of_a_stage_is_for_the_next_command(trained: Trained, tmp_path: Path) -> None:
    """The scheduler sends it once; a script that went on to `train` would run into the time limit."""
    run, release = tmp_path / "run", tmp_path / "release"
    arguments = tiny_arguments(run, trained.shards, *SHARED, "tracking.checkpoint_every=100")
    started = start_ranks(tmp_path, 2, "pretrain", *arguments, prepare=slow_to_save, RELEASE=str(release))
    started[0].wait_for_text("writing")
    term_to_all(started, run)
    release.touch()
    assert_stopped(started, "SIGTERM", run)
    again = latentfuse("pretrain", *arguments)
    assert again.code == 0 and "already finished at step 4" in again.out


def listens(port: int) -> bool:
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    sockets += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()]
    return any(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in sockets)


def test_a_rank_that_waits_for_the_others(trained: Trained, tmp_path: Path) -> None:
    """And nobody comes."""
    arguments, port = tiny_arguments(tmp_path / "run", trained.shards, *SHARED), free_port()
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    alone = Started(tmp_path, ("pretrain", *arguments), place, narrow)
    alone.wait_for(lambda: listens(port))
    alone.signal(signal.SIGUSR1)
    alone.finish().assert_one_line("stopped by SIGUSR1", code=75)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")
@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)])
def test_under_accelerate_launch(trained: Trained, tmp_path: Path, number: int) -> None:
    """Two ranks train as one process does. SIGUSR1 kills the launcher; SIGTERM it hands on: the ranks save and end."""
    run, options = tmp_path / "run", (*SHARED, *ENDLESS, "tracking.checkpoint_every=2", "data.workers=1")
    process = accelerate_launch("pretrain", *tiny_arguments(run, trained.shards, *options), port=free_port())
    wait_for(lambda: list(run.glob("pretrain/checkpoints/step-*")), process)
    ranks = children(process.pid)
    family = [*ranks, *(worker for rank in ranks for worker in children(rank))]
    assert len(ranks) == 2 and len(family) == 4
    os.kill(process.pid, number)
    result = finish(process)
    assert result.code == (-signal.SIGUSR1 if number == signal.SIGUSR1 else 1)
    assert all(map(gone, family)) and saved_step(run)
    assert '"exit_code": 75' in (run / "status.json").read_text()
    # Both ranks write to one stream, piece by piece, and one alone makes no group that would speak.
    assert result.out.count("pretrain 2/") == 1 and result.out.count("[Gloo] Rank") >= 2, result.out
    alone = tiny_arguments(tmp_path / "alone", trained.shards, *options, "training.pretrain_steps=2")
    assert latentfuse("pretrain", *alone).code == 0
    first, second = (scalars(folder, "pretrain")["loss/autoencoder"] for folder in (tmp_path / "alone", run))
    assert [second[step] for step in (1, 2)] == pytest.approx(list(first.values()), rel=1e-4)
