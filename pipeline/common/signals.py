"""What SIGTERM, SIGUSR1 and Ctrl-C do: they end a command where it stands or, in training, after the step."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.common.errors import Interrupted

PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1)
SIGNALS = (signal.SIGINT, *PREEMPTIONS)
PARENT = os.getppid()
"""Who started this process; a launcher that dies leaves another one."""

_cause: str | None = None


@contextmanager
def listening() -> Iterator[None]:
    """In this block SIGTERM and SIGUSR1 raise `Interrupted`, as Ctrl-C raises KeyboardInterrupt."""
    before = _install(dict.fromkeys(PREEMPTIONS, _raise))
    try:
        yield
    finally:
        _install(before)


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
        handlers = _install(dict.fromkeys(SIGNALS, self._note))
        self._before = self._before or handlers

    def end(self) -> None:
        """Back to what was before."""
        _install(self._before)
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


def interruption(number: int) -> Interrupted:
    return Interrupted(number, _cause)


def _install(handlers: dict[int, Any]) -> dict[int, Any]:
    """Returns those they replace."""
    return {number: signal.signal(number, handler) or signal.SIG_DFL for number, handler in handlers.items()}


def _raise(number: int, frame: FrameType | None) -> None:
    raise interruption(number)


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
            stop = interruption(number[0])
            os.write(2, f"latentfuse: {stop}\n".encode())
            os._exit(stop.exit_code)
