"""Signals to real processes: the work is saved, the exit code says what happened, and it can go on."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forking import Started, children, free_port, narrow, start_command, start_ranks
from running import (
    Trained,
    finish,
    gone,
    latentfuse,
    listing,
    make_photographs,
    start,
    tiny_arguments,
    wait_for,
)

from pipeline.training import checkpoint

ENDLESS = ("training.pretrain_steps=100000", "tracking.checkpoint_every=100000", "tracking.image_every=100000")


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


@pytest.mark.parametrize("source", ["shards", "stream"])
def test_sigterm_while_the_data_do_not_come(trained: Trained, tmp_path: Path, source: str) -> None:
    """A disk or a server that has stalled: what was trained is saved, and neither worker nor tool lives on."""
    run, pid, opened = tmp_path / "run", tmp_path / "pid", tmp_path / "opened"
    opened.write_text("")
    tar = trained.shards / "train" / "shard-000000.tar"
    # Sixty times it delivers four images, of which a worker holds a hundred back.
    stalls = f"pipe:test $(wc -l < {opened}) -lt 60 || {{ echo $$ > {pid}; sleep 100; }}; echo >> {opened}; cat {tar}"
    options = ["data.workers=1", *ENDLESS, *([f"data.stream={stalls}"] if source == "stream" else [])]
    job = start_command(tmp_path / "job", "pretrain", *tiny_arguments(run, trained.shards, *options), prepare=narrow)
    job.wait_for(lambda: "pretrain 1/" in job.text())
    if source == "shards":
        os.kill(children(job.pid)[0], signal.SIGSTOP)
    time.sleep(1)
    before = job.text()
    time.sleep(0.5)
    assert job.text() == before, "it waits"
    job.signal(signal.SIGTERM)
    result = job.finish(30)
    result.assert_one_line("stopped by SIGTERM; the same command resumes", code=75)
    newest, _ = checkpoint.newest(run / "pretrain" / "checkpoints")
    assert newest is not None and newest.step >= 1
    assert job.group_is_gone() and (source == "shards" or gone(int(pid.read_text())))


def test_a_closed_pipe_saves(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("pretrain", *tiny_arguments(run, trained.shards, *ENDLESS))
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("pretrain 1/")
    process.stdout.close()  # as `| head -1` does
    errors = process.stderr.read()
    assert process.wait(60) == 75 and errors.count("\n") == 1 and "stopped by a closed pipe" in errors
    saved, _ = checkpoint.newest(run / "pretrain" / "checkpoints")
    assert saved is not None and saved.step >= 1


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


def term_to_all(started: list[Started], run: Path) -> None:
    for each in started:
        each.signal_group(signal.SIGTERM)


def usr1_to_one(started: list[Started], run: Path) -> None:
    started[-1].signal(signal.SIGUSR1)


def stop_file(started: list[Started], run: Path) -> None:
    (run / "STOP").touch()


HOW = {"SIGTERM": term_to_all, "SIGUSR1": usr1_to_one, "STOP": stop_file}
SHARED = ("training.global_batch_size=8", "training.micro_batch_size=2")


def assert_stopped(started: list[Started], how: str, run: Path) -> None:
    """All ranks, at once, in order, with one line."""
    results = [each.finish(30) for each in started]
    assert [each.code for each in results] == [75] * len(started), results
    expected = f"stopped by the file {run / 'STOP'}" if how == "STOP" else f"stopped by {how}"
    results[0].assert_one_line(expected, "the same command resumes", code=75)
    assert all(not each.errors for each in results[1:]), results
    assert all(each.group_is_gone() for each in started)
    assert not (run / "STOP").exists() and not list(run.rglob("*.tmp*"))
    assert '"stopped"' in (run / "status.json").read_text()


@pytest.mark.parametrize("how", HOW)
def test_two_ranks_agree_and_save(trained: Trained, tmp_path: Path, how: str) -> None:
    run = tmp_path / "run"
    arguments = tiny_arguments(run, trained.shards, *SHARED, *ENDLESS, "tracking.log_every=1", "data.workers=1")
    started = start_ranks(tmp_path, 2, "pretrain", *arguments, prepare=narrow)
    started[0].wait_for(lambda: "pretrain 3/" in started[0].text())
    HOW[how](started, run)
    assert_stopped(started, how, run)
    saved, passed_over = checkpoint.newest(run / "pretrain" / "checkpoints")
    assert saved is not None and saved.step >= 3 and not passed_over


def slow_to_warm_up() -> None:
    narrow()
    from pipeline.training import resume

    read = resume.read_alike

    def slow(*arguments: Any) -> Any:
        print("warming up", flush=True)
        time.sleep(1.5)
        return read(*arguments)

    resume.read_alike = slow


def slow_to_save() -> None:
    narrow()
    import torch

    save = torch.save

    def slow(*arguments: Any) -> None:
        print("writing", flush=True)
        time.sleep(1.5)
        save(*arguments)

    torch.save = slow


def slow_to_evaluate() -> None:
    narrow()
    from pipeline.evaluation import report

    measure = report.image_pass

    def slow(*arguments: Any) -> Any:
        print("measuring", flush=True)
        time.sleep(20)
        return measure(*arguments)

    report.image_pass = slow


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
            if (phase, how) != ("measuring", "SIGUSR1")  # a rank that waits for the main one goes on waiting
        ),
    ],
)
def test_whatever_the_ranks_are_doing(trained: Trained, tmp_path: Path, phase: str, how: str) -> None:
    run = tmp_path / "run"
    arguments = tiny_arguments(run, trained.shards, *SHARED, "tracking.checkpoint_every=1")
    started = start_ranks(tmp_path / "first", 2, "run", *arguments, prepare=SLOW[phase])
    started[0].wait_for(lambda: phase in started[0].text())
    asked = time.monotonic()
    HOW[how](started, run)
    assert_stopped(started, how, run)
    assert time.monotonic() - asked < 10
    results = [each.finish() for each in start_ranks(tmp_path / "second", 2, "run", *arguments, prepare=narrow)]
    assert [each.code for each in results] == [0, 0], results
    assert "Made:" in results[0].out and ("resumed from" in results[0].out) == (phase != "warming up")


def test_a_signal_in_the_last_save_of_a_stage_is_for_the_next_command(trained: Trained, tmp_path: Path) -> None:
    """The scheduler sends it once; a script that went on to `train` would run into the time limit."""
    run = tmp_path / "run"
    arguments = tiny_arguments(run, trained.shards, *SHARED, "tracking.checkpoint_every=100")
    started = start_ranks(tmp_path, 2, "pretrain", *arguments, prepare=slow_to_save)
    started[0].wait_for(lambda: "writing" in started[0].text())
    term_to_all(started, run)
    assert_stopped(started, "SIGTERM", run)
    again = latentfuse("pretrain", *arguments)
    assert again.code == 0 and "already finished at step 4" in again.out


def test_a_rank_that_waits_for_the_others(trained: Trained, tmp_path: Path) -> None:
    arguments = tiny_arguments(tmp_path / "run", trained.shards, *SHARED)
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    alone = start_command(tmp_path, "pretrain", *arguments, MASTER_PORT=str(free_port()), **variables)
    time.sleep(1.5)  # nobody comes
    alone.signal(signal.SIGUSR1)
    alone.finish(20).assert_one_line("stopped by SIGUSR1", code=75)


def test_a_command_that_only_measures(trained: Trained, tmp_path: Path) -> None:
    arguments = ("evaluate", trained.bundle, trained.shards / "test", "--out", tmp_path / "out")
    started = start_command(tmp_path, *arguments, prepare=slow_to_evaluate)
    started.wait_for(lambda: "measuring" in started.text())
    started.signal(signal.SIGTERM)
    started.finish(20).assert_one_line("stopped by SIGTERM", code=75)
    assert not (tmp_path / "out").exists()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")
@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)])
def test_under_accelerate_launch(trained: Trained, tmp_path: Path, number: int) -> None:
    """SIGUSR1 kills the launcher; SIGTERM it hands on. Either way the ranks save, and none is left behind."""
    run = tmp_path / "run"
    arguments = tiny_arguments(run, trained.shards, *SHARED, *ENDLESS, "data.workers=1")
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    ports = ("--main_process_port", str(free_port()), "--mixed_precision", "no", "--dynamo_backend", "no")
    process = start("-m", "pipeline", "pretrain", *arguments, module=(*launcher, *ports))
    wait_for(lambda: any(e.stat().st_size > 500 for e in (run / "tensorboard").rglob("events*")), process)
    ranks = children(process.pid)
    family = [*ranks, *(worker for rank in ranks for worker in children(rank))]
    assert len(ranks) == 2 and len(family) == 4
    os.kill(process.pid, number)
    result = finish(process, 40)
    assert result.code == (-signal.SIGUSR1 if number == signal.SIGUSR1 else 1)
    deadline = time.monotonic() + 20
    while any(map(is_alive, family)):
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.05)
    saved, passed_over = checkpoint.newest(run / "pretrain" / "checkpoints")
    assert saved is not None and saved.step >= 1 and not passed_over
    assert '"exit_code": 75' in (run / "status.json").read_text()
