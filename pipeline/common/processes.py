"""Tasks on several processes that stop at once: on a signal, on an error, and when the parent is killed.

A signal to the whole group, as Ctrl-C and SLURM send it, is for the parent: workers ignore it, and end when the parent
tells them through a pipe. A pipe, because a worker that is killed may take the lock of an Event with it.
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from pipeline.common.errors import UserError

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")
Item = TypeVar("Item")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
IDLE_SECONDS = 1.0
"""How long a worker that was told to stop waits for the executor to end it, before it ends itself."""

ASKING_SECONDS = 0.02
"""How often a worker looks whether it was told to stop."""

_worker: dict[str, Any] = {}


class Stopped(Exception):
    """The parent has asked this worker to stop."""


def default_workers() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stoppable(items: Iterable[Item]) -> Iterator[Item]:
    """Yield `items`; in a worker, raise `Stopped` as soon as the parent wants no more."""
    stop: Connection | None = _worker.get("stop")
    if stop is None:
        yield from items
        return
    asked = 0.0
    for item in items:
        # Asking takes as long as a tenth of a small image.
        if time.monotonic() - asked > ASKING_SECONDS:
            if stop.poll():
                raise Stopped
            asked = time.monotonic()
        yield item


def run_tasks(
    function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], workers: int | None
) -> Generator[Result, None, None]:
    """Yield `function(shared, task)` for every task, as they finish.

    Args:
        function: a module's function; a long one iterates through `stoppable`.
        shared: sent to each worker once, as the tasks are: forked workers have them for nothing.
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
    stop, stopper = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(function, shared, tasks, stop)
    )
    try:
        with signals_held():
            futures = [executor.submit(_call, number) for number in range(len(tasks))]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for want of memory; run again with fewer workers"
        ) from None
    finally:
        with signals_held(), stop, stopper:
            stopper.send(None)  # never received: it stays there for every worker to see
            executor.shutdown(wait=True, cancel_futures=True)


def _start(function: Callable[[Any, Any], Any], shared: Any, tasks: Sequence[Any], stop: Connection) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # what the parent has made is no garbage of this worker's
    _worker.update(function=function, shared=shared, tasks=tasks, stop=stop, busy=threading.Lock())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(number: int) -> Any:
    with _worker["busy"]:
        return _worker["function"](_worker["shared"], _worker["tasks"][number])


def end_tools(worker: int) -> None:
    """Kill what a worker has started, each the leader of a process group: it would outlive a worker that is killed."""
    with suppress(OSError):  # a kernel that does not tell
        for tool in Path(f"/proc/{worker}/task/{worker}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.killpg(int(tool), signal.SIGKILL)


def _end_with_parent() -> None:
    """End this worker when the parent is gone; or when it said stop, but the executor cannot end an idle worker.

    After a worker was killed, the executor's queues may be locked for ever, and its SIGTERM is ignored.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers run this"
    wait([parent.sentinel, _worker["stop"]])
    while not wait([parent.sentinel], timeout=IDLE_SECONDS) and _worker["busy"].locked():
        end_tools(os.getpid())  # it may wait for one that has stalled
    end_tools(os.getpid())
    os._exit(1)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold signals back until the end of the block. Workers started in it inherit that, and print no traceback."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    # The mask alone would not do: a signal that another thread of the process takes runs the main thread's handler.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in SIGNALS if in_main_thread}
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for held in noted:
            signal.raise_signal(held)
