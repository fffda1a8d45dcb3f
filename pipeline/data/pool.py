"""Tasks on several processes that stop at once: on Ctrl-C, on an error, and when the parent is killed."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

from pipeline.errors import UserError

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")
Item = TypeVar("Item")

_worker: dict[str, Any] = {}


class Stopped(Exception):
    """The parent has asked this worker to stop."""


def default_workers() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stoppable(items: Iterable[Item]) -> Iterator[Item]:
    """Yield `items`; in a worker, raise `Stopped` as soon as the parent wants no more."""
    stop: Event | None = _worker.get("stop")
    for item in items:
        if stop is not None and stop.is_set():
            raise Stopped
        yield item


def run_tasks(
    function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], workers: int | None
) -> Generator[Result, None, None]:
    """Yield `function(shared, task)` for every task, as they finish.

    Args:
        function: a module's function; a long one iterates through `stoppable`.
        shared: sent to each worker once.
        workers: processes; 1 runs the tasks here, None takes every processor.

    Raises:
        UserError: a worker was killed. Whatever `function` raises is raised here.
    """
    workers = min(default_workers() if workers is None else workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield function(shared, task)
        return
    # Workers use no thread or GPU context of the parent, so fork is safe; and it shares a large source for nothing.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    stop = context.Event()
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(function, shared, stop))
    try:
        with _interrupts_held():
            futures = [executor.submit(_call, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for want of memory; run again with fewer workers"
        ) from None
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _start(function: Callable[[Any, Any], Any], shared: Any, stop: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker.update(function=function, shared=shared, stop=stop)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _call(task: Any) -> Any:
    return _worker["function"](_worker["shared"], task)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers run this"
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers are started: they inherit the mask and never print a traceback of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
