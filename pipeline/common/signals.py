"""What SIGINT, SIGTERM, SIGHUP and SIGUSR1 do: they end a command where it stands or, in training, after the step.

A command is in one of three states. While it starts and ends (`leave_at_once`) a signal ends the process with one
line. While it works (`raise_at_once`) a signal is an exception, so that what was begun is cleaned up. While it trains
(`Deferred`) a signal is noted, and the ranks agree on it.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from pipeline.common.errors import Interrupted

HANG_UP = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
"""A lost terminal is as SIGTERM; under `nohup` it is ignored, and stays so."""
PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, *HANG_UP)
SIGNALS = (signal.SIGINT, *PREEMPTIONS)
PARENT = os.getppid()
"""Who started this process; a launcher that dies leaves another one."""

_cause: str | None = None
_exit_code: int | None = None


def leave_at_once() -> dict[int, Any]:
    """From here a signal ends the process with its exit code and one line. Returns the handlers before.

    For a command's start and end: nothing is begun yet or left to do, and some libraries swallow exceptions.
    """
    return install(dict.fromkeys(SIGNALS, _leave_at_once))


def raise_at_once() -> dict[int, Any]:
    """From here SIGINT raises KeyboardInterrupt and the others `Interrupted`. Returns the handlers before."""
    global _exit_code
    _exit_code = None
    return install({signal.SIGINT: signal.default_int_handler, **dict.fromkeys(PREEMPTIONS, _raise)})


@contextmanager
def listening() -> Iterator[None]:
    """`raise_at_once` for a block."""
    before = raise_at_once()
    try:
        yield
    finally:
        install(before)


def end_is_certain(exit_code: int) -> None:
    """The work is done and its result is told: a signal from here on changes the exit code no more."""
    global _exit_code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    _exit_code = exit_code


def ignore() -> None:
    """While Python takes itself down: it forgets handlers before it has ended."""
    install(dict.fromkeys(SIGNALS, signal.SIG_IGN))


def request(cause: str) -> None:
    """Stop this process as SIGUSR1 would, from any thread; `cause` is what the message says."""
    global _cause
    _cause = cause
    os.kill(os.getpid(), signal.SIGUSR1)


class Deferred:
    """Between `start` and `end` signals are only noted, in `number`. A second Ctrl-C raises KeyboardInterrupt."""

    number = 0
    _waiting = False

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def start(self) -> None:
        handlers = install(dict.fromkeys(SIGNALS, self._note))
        self._before = self._before or handlers

    def end(self) -> None:
        """Back to what was before."""
        install(self._before)
        self._before = {}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In this block the first signal, noted before it or not, raises `Interrupted`; it stays noted."""
        self._waiting = True
        try:
            if self.number:
                raise interruption(self.number)
            yield
        finally:
            self._waiting = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if self._waiting:
            self._waiting = False  # what the block then cleans up is not disturbed by a second one
            raise interruption(number)


@contextmanager
def held() -> Iterator[None]:
    """Hold signals back until the end of the block. Processes started in it inherit that, and print no traceback."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    # The mask alone would not do: a signal that another thread of the process takes runs the main thread's handler.
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = install(dict.fromkeys(SIGNALS, note)) if in_main_thread else {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # those that wait are noted here
        finally:
            install(before)
        for number in noted:
            signal.raise_signal(number)


def interruption(number: int) -> Interrupted:
    return Interrupted(number, _cause)


def install(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Set handlers, all of them or none; a signal that comes meanwhile waits. Returns those that they replace."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    before: dict[int, Any] = {}
    try:
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler) or signal.SIG_DFL
    except BaseException:  # another thread took a signal before, whose handler raises here
        for number, handler in before.items():
            signal.signal(number, handler)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return before


def _raise(number: int, frame: FrameType | None) -> None:
    if _exit_code is not None:
        os._exit(_exit_code)
    raise interruption(number)


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    if _exit_code is not None:
        os._exit(_exit_code)
    _end_process(number)


def _end_process(number: int) -> None:
    stop = interruption(number)
    told = "stopped by Ctrl-C" if number == signal.SIGINT else str(stop)
    with suppress(OSError):  # the terminal may be what was lost
        os.write(2, f"latentfuse: {told}\n".encode())
    os._exit(stop.exit_code)


@contextmanager
def leaving() -> Iterator[None]:
    """In this block a signal ends the process with the exit code it stands for.

    For calls that wait inside a library's own code, where Python's handlers do not run: ranks that wait for others.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    watcher = threading.Thread(target=_leave, args=(read,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)
        watcher.join()
        os.close(read)


def _leave(pipe: int) -> None:
    while number := os.read(pipe, 1):
        if number[0] in SIGNALS:
            _end_process(number[0])
