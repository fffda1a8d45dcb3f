"""The processes of a DataLoader: they end when training says so, or with it, whatever they wait for."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.pool import end_tools, signals_held
from pipeline.errors import UserError
from pipeline.memory import keep_freed_memory

SHARED_MEMORY = Path("/dev/shm")
"""Where workers leave images for the training process."""


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
    """End the workers of a DataLoader's iterator, those that wait for a disk or a server too.

    Python would end them at exit, by the SIGTERM that they ignore, and wait for ever.
    """
    with signals_held():
        getattr(batches, "_shutdown_workers", lambda: None)()
        for worker in getattr(batches, "_workers", ()):
            if worker.is_alive():
                end_tools(worker.pid)
                worker.kill()
                worker.join()


def too_little_shared_memory(workers: int, needed: int) -> UserError:
    free = shutil.disk_usage(SHARED_MEMORY).free
    return UserError(
        f"data.workers: {workers} need {-(-needed // 2**20)} MiB in {SHARED_MEMORY}, {free // 2**20} MiB are free; "
        "use fewer (0 need none), or start the container with more (--shm-size)"
    )
