"""The processes of a DataLoader: they end when training says so, or with it, whatever they wait for."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.utils.data import _utils

from pipeline.common.devices import keep_freed_memory
from pipeline.common.errors import UserError
from pipeline.common.processes import end_tools, signals_held

SHARED_MEMORY = Path("/dev/shm")
"""Where workers leave images for the training process."""
GRACE = 2.0
"""Seconds that workers have to end by themselves, and then to be killed."""


def follow_the_trainer(worker: int) -> None:
    """For workers, which keep the memory that they decode into.

    Ctrl-C and a scheduler's signals reach every process of the group; only the trainer acts on them, and whatever ends
    it ends its workers: torch's own watch does not see a worker whose queue is full.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers run this"
    parent.join()
    end_tools(os.getpid())
    os._exit(1)


def end_workers(batches: Iterator[Any]) -> None:
    """End the workers of a DataLoader's iterator within seconds, those that wait for a disk or a server too.

    Python would end them at exit, by the SIGTERM that they ignore, and wait for ever.
    """
    workers = getattr(batches, "_workers", ())
    if not workers:
        return
    patience = _utils.MP_STATUS_CHECK_INTERVAL
    with signals_held():
        try:
            _utils.MP_STATUS_CHECK_INTERVAL = GRACE / len(workers)  # torch waits so long for each, one after another
            batches._shutdown_workers()  # type: ignore[attr-defined]
        finally:
            _utils.MP_STATUS_CHECK_INTERVAL = patience
            _kill([worker for worker in workers if worker.is_alive()])


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        end_tools(worker.pid or 0)
        worker.kill()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    # A disk that does not answer keeps a process even from being killed. Python is not to wait for it at exit.
    process._children.difference_update(worker for worker in workers if worker.is_alive())  # type: ignore[attr-defined]


def too_little_shared_memory(workers: int, needed: int) -> UserError:
    free = shutil.disk_usage(SHARED_MEMORY).free
    return UserError(
        f"data.workers: {workers} need {-(-needed // 2**20)} MiB in {SHARED_MEMORY}, {free // 2**20} MiB are free; "
        "use fewer (0 need none), or start the container with more (--shm-size)"
    )
