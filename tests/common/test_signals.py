"""What signals do, and when."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import PATIENCE, wait_for

from pipeline.common import signals
from pipeline.common.errors import Interrupted

NUMBERS = signals.SIGNALS


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.PREEMPTIONS)
def test_at_first_a_signal_ends_the_command_where_it_stands(number: int) -> None:
    with pytest.raises(Interrupted, match=signal.Signals(number).name), signals.listening():
        signal.raise_signal(number)


@pytest.mark.parametrize("number", NUMBERS)
def test_deferred_it_is_noted(number: int) -> None:
    deferred = signals.Deferred()
    with signals.listening():
        deferred.start()
        assert deferred.number == 0
        os.kill(os.getpid(), number)
        assert deferred.number == number
        deferred.end()
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@contextmanager
def cleaning_up() -> Iterator[None]:
    """A second signal arrives meanwhile, which disturbs nothing."""
    try:
        yield
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_wait_is_ended_once(number: int) -> None:
    deferred = signals.Deferred()
    deferred.start()
    with deferred.waiting():
        pass
    with pytest.raises(Interrupted, match="the same command resumes") as caught, deferred.waiting(), cleaning_up():
        os.kill(os.getpid(), number)
    assert caught.value.number == number and deferred.number == signal.SIGTERM
    with pytest.raises(Interrupted), deferred.waiting():
        raise AssertionError("one that was noted ends the block before it begins")


def test_a_second_ctrl_c_stops_at_once() -> None:
    deferred = signals.Deferred()
    deferred.start()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


REQUESTED = """
from pipeline.common import signals
deferred = signals.Deferred()
deferred.start()
signals.request("the file STOP")
with deferred.waiting():
    pass
"""


def test_a_request_from_a_thread_says_why() -> None:
    """In a process of its own: the reason is kept for the rest of it."""
    done = subprocess.run([sys.executable, "-c", REQUESTED], capture_output=True, text=True)
    assert "stopped by the file STOP; the same command resumes" in done.stderr


def test_exit_codes() -> None:
    assert Interrupted(signal.SIGINT).exit_code == 130
    assert Interrupted(signal.SIGTERM).exit_code == Interrupted(signal.SIGUSR1).exit_code == 75
    assert "SIGTERM" in str(Interrupted(signal.SIGTERM)) and not isinstance(Interrupted(signal.SIGTERM), Exception)


BLOCKED = """
import ctypes, os
from pipeline.common import signals
with signals.listening(), signals.leaving():
    os.write(1, b"waiting\\n")
    # Waits in C and begins again when a signal comes: Python's handlers do not run.
    lock = ctypes.create_string_buffer(64)
    library = ctypes.CDLL(None)
    library.pthread_mutex_init(lock, None)
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize(("number", "code"), [*((number, 75) for number in signals.PREEMPTIONS), (signal.SIGINT, 130)])
def test_a_wait_in_c_is_left_with_the_exit_code(number: int, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"waiting\n"
    wait_for(lambda: " S " in Path(f"/proc/{process.pid}/stat").read_text())
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code and errors.startswith(b"latentfuse: stopped by"), (process.returncode, errors)


ENDED = """
import os, signal
from pipeline.common import signals
{}()
print("told")
signals.end_is_certain(3)
os.kill(os.getpid(), signal.{})
"""


@pytest.mark.parametrize("state", ["signals.leave_at_once", "signals.raise_at_once"])
@pytest.mark.parametrize("number", signals.PREEMPTIONS)
def test_a_signal_after_the_end_changes_no_exit_code(state: str, number: signal.Signals) -> None:
    program = ENDED.format(state, number.name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "told\n", "")


def test_handlers_are_set_all_or_none() -> None:
    """A signal that another thread has taken is handled here, whatever this thread is at."""

    def refuse(number: int, frame: object) -> None:
        raise AssertionError("not called")

    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(OSError, match="Invalid argument"):
        signals.install({**dict.fromkeys(NUMBERS, refuse), signal.SIGKILL: refuse})
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_held_signal_comes_at_the_end_of_the_block() -> None:
    steps = []

    def hold() -> None:
        with signals.held():
            signal.raise_signal(signal.SIGTERM)
            steps.append("undisturbed")

    with signals.listening(), pytest.raises(Interrupted, match="SIGTERM"):
        hold()
    assert steps and not signal.pthread_sigmask(signal.SIG_BLOCK, [])
