"""Checkpoints written beside training: a step that saves waits only for the copy to host memory."""

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.training.ranks import Ranks


class CheckpointWriter:
    """Writes one checkpoint at a time, on the main rank, in a thread of its own.

    If that fails, `failure` tells it for the ranks' next agreement, or `finish` raises it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def start(self, write: Callable[[], object]) -> None:
        """Begin to write, once the one before is written. On the main rank."""
        self._join()

        def run() -> None:
            try:
                write()
            except Exception as error:  # told by `failure`, where the ranks can agree on it
                self._failure = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """The error of the last write, told once; one that is a bug is raised."""
        failure, self._failure = self._failure, None
        if failure is not None and not isinstance(failure, UserError | OSError):
            raise failure
        return failure

    def finish(self) -> None:
        """Wait until all is written. Every rank calls it, and all stop at a failure.

        Raises:
            UserError: what it failed with, on the main rank; StoppedElsewhere on others.
        """
        self._ranks.on_main(self._finish)

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it."""
        self._join()

    def _finish(self) -> None:
        self._join()
        if (failure := self.failure) is not None:
            raise failure

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def on_host(state: Any) -> Any:
    """A copy of a nested state, its tensors in host memory: training goes on and changes the originals."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_host(value) for value in state)
    return state
