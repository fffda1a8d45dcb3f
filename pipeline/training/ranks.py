"""What the ranks agree on besides gradients: that one is asked to stop, that one has failed, what the main rank did.

All of it goes through a process group of its own on the CPU, which does not wait for the GPU.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from pipeline.common import signals
from pipeline.common.errors import Interrupted, LostRank, StoppedElsewhere, UserError
from pipeline.training.heartbeat import Monitor, leave
from pipeline.training.launcher import Launch, read_launcher

PATIENCE = timedelta(days=1)
"""The main rank may shard a data set while the others wait; heartbeats tell whether it is alive."""
COLLECTIVE_PATIENCE = timedelta(minutes=30)
"""How long ranks wait for one that has yet to come, and a collective of training for one that is alive but late."""
RESUMES = "the newest checkpoint is whole, the same command resumes"
NETWORK = ("gloo", "NCCL")
"""Words in the messages of a broken collective."""

T = TypeVar("T")


class Ranks:
    """One per process, once the default process group is there."""

    def __init__(self, rank: int, world_size: int, when_lost: str = RESUMES) -> None:
        """`when_lost` is what the user is told where a rank is lost."""
        self.rank, self.world_size, self.when_lost = rank, world_size, when_lost
        self.signals = signals.Deferred()
        self._group = distributed.new_group(backend="gloo", timeout=PATIENCE) if world_size > 1 else None
        self._agreed = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextmanager
    def watched(self, run_dir: Path | None, on_loss: Callable[[str], None]) -> Iterator[None]:
        """From here to the end of the block signals wait for `agree`, and every rank watches the others.

        A file STOP in `run_dir`, where there is one, is as a signal.

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
            raise LostRank(f"lost another rank; {self.when_lost}") from error

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

    def gathered(self, mine: T) -> list[T]:
        """What every rank hands in, by rank, on all of them: simple values, and tensors on the CPU."""
        if self._group is None:
            return [mine]
        everything: list[Any] = [None] * self.world_size
        distributed.all_gather_object(everything, mine, group=self._group)
        return everything


class AtOnce:
    """The same ranks for work that a signal may end where it stands: it writes whole files or none.

    A signal ends it at once on the rank that gets it; the others finish their share, and stop then.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.rank, self.world_size = ranks.rank, ranks.world_size
        self.gathered = ranks.gathered

    def together(self, work: Callable[[], T]) -> T:
        """As `Ranks.together`."""
        return self._ranks.together(lambda: self._listening(work))

    def on_main(self, work: Callable[[], T]) -> T:
        """As `Ranks.on_main`."""
        return self._ranks.on_main(lambda: self._listening(work))

    def _listening(self, work: Callable[[], T]) -> T:
        with self._ranks.signals.waiting():
            return work()


@contextmanager
def meeting(device: str) -> Iterator[tuple[AtOnce, str]]:
    """The ranks of a command that needs no run folder, and this rank's device; alone, where there is no launcher.

    Args:
        device: cpu or cuda.

    Raises:
        UserError: if the launcher's environment is wrong, or there are more ranks than GPUs on this machine.
        LostRank: if the others do not come, or one is lost.
    """
    launch = read_launcher()
    if launch.world_size == 1:
        yield AtOnce(Ranks(0, 1)), device
        return
    with signals.leaving(), all_come(launch, COLLECTIVE_PATIENCE), _without_gloo_lines():
        distributed.init_process_group("gloo", timeout=COLLECTIVE_PATIENCE)
        ranks = Ranks(launch.rank, launch.world_size, "nothing was written; run the same command again")
    with ranks.watched(None, lambda reason: leave(f"lost another rank: {reason}; {ranks.when_lost}")):
        yield AtOnce(ranks), ranks.together(lambda: _own_device(device))
    distributed.destroy_process_group()


@contextmanager
def _without_gloo_lines() -> Iterator[None]:
    """Gloo tells on standard output that ranks have met; what a command prints there may be JSON."""
    sys.stdout.flush()
    before, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(nowhere)


def _own_device(device: str) -> str:
    """Of several GPUs that of this rank."""
    rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device != "cuda" or not count:
        return device
    if rank >= count:
        raise UserError(f"--device cuda: more ranks on this machine than GPUs, of which there are {count}; start fewer")
    torch.cuda.set_device(rank)
    return f"cuda:{rank}"


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
