"""The processes of a `DataLoader`: they end when training says so, or with it, whatever they wait for."""

import multiprocessing
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import process
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.common import signals
from pipeline.common.devices import keep_freed_memory
from pipeline.common.errors import LostRank, UserError
from pipeline.common.processes import heed_parent_only, stop

SHARED_MEMORY = Path("/dev/shm")
"""Where workers leave images for the training process."""
GRACE_SECONDS = 1.0
"""How long workers may take to stop, and then to be killed."""


@contextmanager
def loaded(dataset: Dataset[Any], workers: int, prefetch: int, **options: Any) -> Iterator[Iterator[Any]]:
    """What a `DataLoader` with `options` yields; in the training process where `workers` is 0.

    The end of the block ends the workers within seconds, those that wait for a disk or a server, too.

    Raises:
        LostRank: from the iterator, when a worker was killed.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_follow_the_trainer,
        pin_memory=torch.cuda.is_available(),
        **options,
    )
    before = set(multiprocessing.active_children())
    with signals.held():
        batches = iter(loader)
    started = set(multiprocessing.active_children()) - before
    try:
        yield _until_a_worker_is_lost(batches)
    finally:
        if started:
            _end(batches, started)


def _until_a_worker_is_lost(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except (ConnectionError, EOFError):  # what the worker left in shared memory can no longer be fetched from it
        raise lost_worker() from None


def lost_worker() -> LostRank:
    """What to say where a worker was killed: torch raises a RuntimeError, "DataLoader worker ...", anywhere then."""
    return LostRank(
        "a loader worker was killed, often for want of memory (fewer data.workers need less); "
        "the newest checkpoint is whole, the same command resumes"
    )


def _follow_the_trainer(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach every process of the group: only the trainer acts on them."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None, "only workers run this"
    heed_parent_only(parent.pid)
    keep_freed_memory()
    sys.excepthook = _say_nothing_of_lost_connections


def _say_nothing_of_lost_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Where the trainer ends while it fetches an image from this worker, multiprocessing would print a traceback."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end(batches: Any, workers: set[BaseProcess]) -> None:
    """Torch would wait five seconds for each worker that does not answer."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    with signals.held():
        # torch's handler of SIGCHLD raises when a worker is killed.
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main_thread else None
        stop(workers, GRACE_SECONDS)
        # A disk that does not answer keeps a process even from being killed. Python has no public way to forget one,
        # and would wait for it at exit.
        stuck = [worker for worker in workers if worker.is_alive()]
        process._children.difference_update(stuck)  # type: ignore[attr-defined]
        # Nor has torch one to end an iterator in use; for one that is stuck it would wait five seconds more.
        batches._shutdown = bool(stuck)
        batches._shutdown_workers()
        if in_main_thread:
            signal.signal(signal.SIGCHLD, handler)


def check_shared_memory(workers: int, needed: int) -> None:
    """Raise a UserError where `workers` need more shared memory than is free.

    Without enough of it a worker loses a batch, and the training process waits for it for ever.
    """
    if workers and SHARED_MEMORY.exists() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise UserError(
            f"data.workers: {workers} need {-(-needed // 2**20)} MiB in {SHARED_MEMORY}, {free // 2**20} MiB are free; "
            "use fewer (0 need none), or start the container with more (--shm-size)"
        )
