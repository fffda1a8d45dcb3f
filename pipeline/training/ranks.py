"""What the ranks agree on besides gradients: that one is asked to stop, that one has failed, what the main rank did.

All of it goes through a process group of its own on the CPU, which does not wait for the GPU.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from pipeline.common import signals
from pipeline.common.errors import Interrupted, LostRank, StoppedElsewhere, UserError
from pipeline.training.heartbeat import Monitor
from pipeline.training.launcher import Launch

PATIENCE = timedelta(days=1)
"""The main rank may shard a data set while the others wait; heartbeats tell whether it is alive."""
NETWORK = ("gloo", "NCCL")
"""Words in the messages of a broken collective."""

T = TypeVar("T")


class Ranks:
    """One per process, once the default process group is there."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.signals = signals.Deferred()
        self._group = distributed.new_group(backend="gloo", timeout=PATIENCE) if world_size > 1 else None
        self._agreed = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextmanager
    def watched(self, run_dir: Path, on_loss: Callable[[str], None]) -> Iterator[None]:
        """From here to the end of the block signals wait for `agree`, and every rank watches the others.

        Raises:
            LostRank: if a collective in the block fails because another rank has gone.
        """
        monitor = Monitor(run_dir, self.rank, self.world_size, on_loss)
        self.signals.start()
        self._agreed = False
        try:
            with self.lost_ranks_named():
                yield
            self._agreed = True
            signals.end_is_certain(0)
        finally:
            monitor.end()
            if self._agreed and self._group is not None:
                with suppress(RuntimeError):
                    distributed.barrier(self._group)  # no rank leaves while another expects its heartbeat
            self.signals.end()

    @contextmanager
    def lost_ranks_named(self) -> Iterator[None]:
        """Raises LostRank where a collective in the block fails because another rank has gone."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not _is_network(error):
                raise
            self._agreed = False
            # It may have said why, on its own standard error; this rank only knows that it is gone.
            raise LostRank("lost another rank; the newest checkpoint is whole, the same command resumes") from error

    def agree(self, failure: Exception | None = None) -> None:
        """Tell the other ranks of a failure or a signal here, and learn of theirs.

        Raises:
            Interrupted: on the main rank, when any rank was signalled.
            UserError: on the main rank, when any rank has failed.
            StoppedElsewhere: on the other ranks then.
        """
        if self._group is None:
            if failure is not None:
                raise failure
            if self.signals.number:
                raise signals.interruption(self.signals.number)
            return
        told: list[Any] = [None] * self.world_size
        mine = (None if failure is None else _text(failure), self.signals.number)
        distributed.all_gather_object(told, mine, group=self._group)
        texts, numbers = zip(*told, strict=True)
        stop: Exception | Interrupted | None = _one_error(texts)
        for number in signals.SIGNALS:
            if stop is None and number in numbers:
                stop = signals.interruption(number)
        if stop is not None:
            self._agreed = True
            raise stop if self.is_main else StoppedElsewhere(getattr(stop, "exit_code", 2))

    def together(self, work: Callable[[], T]) -> T:
        """Every rank does `work`, without collectives inside; where it fails or is stopped on one, all of them stop.

        Raises:
            UserError: on the main rank, with what went wrong and, unless it did so everywhere, on which rank.
            Interrupted: on the main rank, when any rank was signalled.
            StoppedElsewhere: on the others.
        """
        if self._group is None:
            return work()
        result: list[T] = []
        failure: Exception | None = None
        try:
            result.append(work())
        except (UserError, OSError) as error:
            failure = error
        except Interrupted as stop:  # noted, as where signals wait
            self.signals.number = stop.number
        except KeyboardInterrupt:
            self.signals.number = signal.SIGINT
        self.agree(failure)
        return result[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """The main rank does `work` while the others wait; its result, small and simple, is handed to all of them.

        Raises:
            StoppedElsewhere: on the others, when it fails. On the main rank, what `work` raises.
        """
        if self._group is None:
            return work()
        outcome: list[Any] = [None, None]
        stop: BaseException | None = None
        if self.is_main:
            try:
                outcome[1] = work()
            except (UserError, OSError, Interrupted, KeyboardInterrupt) as error:
                stop = error
                outcome[0] = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 2)
        distributed.broadcast_object_list(outcome, src=0, group=self._group)
        code, result = outcome
        if code is not None:
            self._agreed = True
            raise stop or StoppedElsewhere(code)
        value: T = result
        return value


@contextmanager
def all_come(launch: Launch, patience: timedelta) -> Iterator[None]:
    """Raises LostRank where the ranks do not meet in the block, which waits for them for `patience` at most."""
    try:
        yield
    except RuntimeError as error:
        if launch.world_size == 1 or not _is_network(error):
            raise
        seconds = patience.total_seconds()
        raise LostRank(
            f"the {launch.world_size} ranks did not all meet at {launch.address} within {seconds:g} s; "
            "see to it that each of them is started and reaches that address, and run the same command again"
        ) from error


def _one_error(texts: Sequence[str | None]) -> UserError | None:
    """One error of what each rank failed with, if any did."""
    if len(set(texts)) == 1:
        return UserError(texts[0]) if texts[0] else None
    return UserError("; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text is not None))


def _is_network(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in NETWORK)


def _text(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return str(error)
