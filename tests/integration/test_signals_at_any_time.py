"""A signal at any instant of a command: its exit code and one line, and nothing half-written is left."""

import signal
import time
from pathlib import Path

import pytest
from forking import on_a_slow_disk, start_command
from running import Result, finish, listing, make_shards, start, tiny_arguments, wait_for

CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it stays ignored
    CODES[signal.SIGHUP] = 75
INSTANTS = range(0, 1001, 20)
"""Milliseconds after the start of the process."""
FEW = (60, 140, 220)


def heeds_signals(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM: not yet while Python itself starts."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def signalled_at(milliseconds: int, number: signal.Signals, *arguments: object) -> Result | None:
    """How a command ended; None if Python had not yet come to its first line, which is not ours to mend."""
    process = start(*arguments)
    time.sleep(milliseconds / 1000)
    too_early = process.poll() is None and not heeds_signals(process.pid)
    process.send_signal(number)
    result = finish(process, 60)
    return None if too_early and result.code != CODES[number] else result


def assert_stopped(result: Result, number: signal.Signals) -> None:
    text = "stopped by Ctrl-C" if number == signal.SIGINT else f"stopped by {number.name}; the same command resumes"
    result.assert_one_line(text, code=CODES[number])


def sweep(tmp_path: Path, instants: tuple[int, ...] | range, number: signal.Signals, command: str) -> None:
    heeded = 0
    for milliseconds in instants:
        out = tmp_path / f"{number}-{milliseconds}"
        arguments = ("synth", out, "--count", 20000, "--workers", 3) if command == "synth" else (command,)
        result = signalled_at(milliseconds, number, *arguments)
        if result is None:
            continue
        heeded += 1
        if result.code == 0 and command == "--help":
            assert "Usage:" in result.out and not result.errors, (milliseconds, result)
            continue
        assert_stopped(result, number)
        assert not out.exists() or not [name for name in listing(out) if Path(name).name.startswith(".")]
    assert heeded >= len(instants) // 3, "most come late enough"


@pytest.mark.parametrize("number", CODES)
def test_a_few_instants(tmp_path: Path, number: signal.Signals) -> None:
    sweep(tmp_path, FEW, number, "--help")


@pytest.mark.faults
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("command", ["--help", "synth"])
def test_every_instant(tmp_path: Path, command: str, number: signal.Signals) -> None:
    sweep(tmp_path, INSTANTS, number, command)


@pytest.mark.parametrize("milliseconds", [0, *(pytest.param(each, marks=pytest.mark.faults) for each in range(1, 60))])
def test_while_workers_are_forked(tmp_path: Path, milliseconds: int) -> None:
    """`synth` forks as soon as it has written what it was asked for."""
    out = tmp_path / "out"
    for number, code in CODES.items():
        job = start_command(tmp_path / number.name, "synth", out, "--count", 20000, "--workers", 6)
        while not (out / "synth.json").exists():  # `wait_for` looks too rarely
            assert job.poll() is None, job.finish()
        time.sleep(milliseconds / 1000)
        job.signal(number)
        result = job.finish(30)
        assert_stopped(result, number)
        assert result.code == code and job.group_is_gone()
        (out / "synth.json").unlink()
        for left in out.rglob("*.jpg"):
            left.unlink()
        (out / "img_align_celeba").rmdir()


def test_under_nohup_a_lost_terminal_is_ignored(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("synth", out, "--count", 200, "--workers", 2, before=("nohup",))
    wait_for((out / "synth.json").exists, process)
    process.send_signal(signal.SIGHUP)
    result = finish(process)
    assert result.code == 0 and "200 faces" in result.out


def test_nothing_is_imported_before_signals_are_heeded() -> None:
    """What the first module needs, and Python itself, is all that is loaded by then."""
    code = (
        "import signal, sys\n"
        "before, install = set(sys.modules), signal.signal\n"
        "def note(number, handler):\n"
        "    print(*sorted(set(sys.modules) - before))\n"
        "    raise SystemExit\n"
        "signal.signal = note\n"
        "import pipeline.__main__\n"
    )
    process = start(module=("-c", code))
    result = finish(process)
    assert result.code == 0, result
    assert "pipeline.common.signals" in result.out
    heavy = {"typer", "rich", "torch", "numpy", "yaml", "pydantic", "pipeline.cli"}
    assert not heavy & set(result.out.split())


@pytest.mark.parametrize("number", CODES)
def test_status_is_never_running_after_an_end_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """Over and over again, as who keeps Ctrl-C pressed."""
    run, shards = tmp_path / "run", make_shards(tmp_path / "shards")
    options = ("training.pretrain_steps=100000", "tracking.checkpoint_every=1", "tracking.image_every=100000")
    job = start_command(tmp_path / "job", "pretrain", *tiny_arguments(run, shards, *options), prepare=on_a_slow_disk)
    job.wait_for((run / "status.json").exists)
    while job.returncode is None and '"running"' in (run / "status.json").read_text():
        job.signal(number)
        time.sleep(0.001)
    result = job.finish()
    assert result.code == CODES[number], result
    status = (run / "status.json").read_text()
    assert '"stopped"' in status and f'"exit_code": {CODES[number]}' in status
