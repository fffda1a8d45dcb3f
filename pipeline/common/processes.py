"""Tasks on several processes that stop at once: on a signal, on an error, and when the parent is killed.

A signal to the whole group, as Ctrl-C and SLURM send it, is for the parent: workers ignore it, and the parent stops
them by a signal of its own. Each has a pipe to itself, so one that is killed leaves no lock behind.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar, cast

from pipeline.common import signals
from pipeline.common.errors import UserError
from pipeline.common.progress import progress

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")

STOP = signal.SIGUSR2
"""What the parent sends to a worker that is to stop; nobody else sends it."""
STOP_SECONDS = 10.0
"""How long a worker may take to stop before it is killed."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent ends."""


class Stopped(KeyboardInterrupt):
    """The parent has asked this worker to stop. Not an Exception: it is raised inside libraries, too."""


def default_workers() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent` ends, on Linux; elsewhere nothing happens.

    Exactly: when the thread that forked it ends. Ours fork from the main thread.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended before
            os._exit(1)


def heed_parent_only(parent: int) -> None:
    """In a worker: ignore signals to the whole group, stop on the parent's own, and end with the parent."""
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(STOP, _raise_stopped)
    end_with_parent(parent)


def run_tasks(
    function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], workers: int | None
) -> Generator[Result, None, None]:
    """Yield `function(shared, task)` for every task, as they finish.

    Args:
        function: a module's function. In a worker it may be stopped anywhere by `Stopped`.
        shared: sent to each worker once, as the tasks are; forked workers share the parent's memory.
        workers: processes; 1 runs the tasks here, None takes every processor.

    Raises:
        UserError: a worker was killed. Whatever `function` raises is raised here.
    """
    workers = min(default_workers() if workers is None else workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield function(shared, task)
        return
    pool: dict[Connection, BaseProcess] = {}
    todo = iter(range(len(tasks)))
    try:
        with signals.held():
            for _ in range(workers):
                connection, worker = _started(function, shared, tasks)
                pool[connection] = worker
                connection.send(next(todo))
        busy = list(pool)
        while busy:
            for ready in wait(busy):
                connection = cast(Connection, ready)
                result = _received(connection)
                if (number := next(todo, None)) is None:
                    busy.remove(connection)
                else:
                    connection.send(number)
                yield result
    finally:
        with signals.held():
            stop(pool.values())
            for connection in pool:
                connection.close()


def run_all(
    function: Callable[[Shared, Task], Result],
    shared: Shared,
    tasks: Sequence[Task],
    workers: int | None,
    work: str,
    unit: str,
) -> list[Result]:
    """The results of `run_tasks`, as they finish, with progress shown: `work: 3 of 8 unit`."""
    with closing(run_tasks(function, shared, tasks, workers)) as results:
        return list(progress(results, work, len(tasks), unit))


def _started(function: Callable[..., Any], shared: Any, tasks: Sequence[Any]) -> tuple[Connection, BaseProcess]:
    # Workers use no thread or GPU context of the parent, so fork is safe.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_work, args=(theirs, os.getpid(), function, shared, tasks), daemon=True)
    worker.start()
    theirs.close()  # so that its end is seen when the worker is killed
    return ours, worker


def _received(connection: Connection) -> Any:
    try:
        result, error = connection.recv()
    except (EOFError, ConnectionResetError):
        raise UserError(
            "a worker process was killed, perhaps for want of memory; run again with fewer workers"
        ) from None
    if error is not None:
        raise error
    return result


def stop(workers: Iterable[BaseProcess], seconds: float = STOP_SECONDS) -> None:
    """Ask workers to stop, and kill those that have not done so after `seconds`."""
    workers = list(workers)
    for worker in workers:
        if worker.is_alive() and worker.pid is not None:
            os.kill(worker.pid, STOP)
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        worker.kill()
    for worker in workers:
        worker.join(seconds)


def _work(connection: Connection, parent: int, function: Callable[..., Any], shared: Any, tasks: Sequence[Any]) -> None:
    """What a worker does: it takes numbers of tasks and gives their results, until it is stopped."""
    try:
        heed_parent_only(parent)
        gc.freeze()  # what the parent has made is not this worker's garbage
        while True:
            number = connection.recv()
            outcome: tuple[Any, Exception | None]
            try:
                outcome = function(shared, tasks[number]), None
            except Exception as error:
                if not isinstance(error, UserError | OSError):
                    error.add_note(f"In a worker:\n{traceback.format_exc()}")
                outcome = None, error
            connection.send(outcome)
    except (Stopped, EOFError, BrokenPipeError):
        return


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    signal.signal(STOP, signal.SIG_IGN)  # what is cleaned up is not disturbed
    raise Stopped
