"""A thread on every rank that sees what a rank in a collective cannot: the file STOP, a dead launcher, a lost rank.

A process that dies closes its connections, and the others notice in the next collective. A machine that vanishes
or hangs closes nothing. So every rank also sends heartbeats, through the store at which the ranks met.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from pipeline.common import signals
from pipeline.common.errors import LostRank

STOP = "STOP"
"""A file of this name in the run folder stops the run as SIGUSR1 would; it is then removed. One that is there before
the job begins was meant for an earlier one."""
LOOK_SECONDS = 1.0
BEAT_SECONDS = 3.0
PATIENCE_SECONDS = 35.0
"""A rank without a heartbeat for so long is lost. With the store's own time limit, all have ended within 60 s."""
STORE_SECONDS = 10.0


class Monitor:
    """The thread; started once the ranks have met. `end` it before the first of them leaves in order."""

    def __init__(self, run_dir: Path | None, rank: int, world_size: int, on_loss: Callable[[str], None]) -> None:
        self.stop_file = run_dir / STOP if run_dir and rank == 0 else None
        self._left_over = _version(self.stop_file)
        self._seconds = 0.0
        """Since the start, without those in which this process was suspended, as SLURM suspends a job."""
        self.heartbeat = Heartbeat(rank, world_size, now=lambda: self._seconds) if world_size > 1 else None
        self.on_loss = on_loss
        self._launched = "TORCHELASTIC_RUN_ID" in os.environ
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        if self.heartbeat:
            self.heartbeat.end()

    def _look(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(LOOK_SECONDS):
            now = time.monotonic()
            self._seconds += min(now - last, 3 * LOOK_SECONDS)
            last = now
            if self.stop_file is not None and _version(self.stop_file) not in (None, self._left_over):
                with suppress(OSError):  # one that cannot be removed stops the run all the same
                    self.stop_file.unlink()
                signals.request(f"the file {self.stop_file}")
            if self._launched and os.getppid() != signals.PARENT:
                self._launched = False  # once is enough
                signals.request("the death of its launcher")
            lost = self.heartbeat.lost() if self.heartbeat else None
            if lost and not self._ended.is_set():
                self.on_loss(lost)


def _version(path: Path | None) -> tuple[int, int] | None:
    """What is another one when a file is made anew or touched; None where there is none, or the file system fails."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns) if found else None


class Heartbeat:
    """Each rank counts up a number of its own; rank 0 reads all of them, the others read rank 0's, and its verdict.

    In another thread than `Monitor`: a store whose machine hangs does not answer, and has no time limit.
    """

    def __init__(
        self, rank: int, world_size: int, store: Store | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.rank = rank
        self.watched = list(range(1, world_size)) if rank == 0 else [0]
        if store is None:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=STORE_SECONDS))
        self.store = PrefixStore("latentfuse", store)
        self._now = now
        self._count = 0
        self._verdict: str | None = None
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._answered = now()
        self._ended = threading.Event()
        self.beat()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def lost(self) -> str | None:
        """What is lost, if anything is."""
        if self._now() - self._answered > PATIENCE_SECONDS:
            return f"rank 0 or its launcher has not answered for {PATIENCE_SECONDS:g} s"
        return self._verdict

    def end(self) -> None:
        self._ended.set()
        self._thread.join(BEAT_SECONDS)

    def beat(self) -> None:
        """Show that this rank is alive."""
        self._count += 1
        self.store.set(str(self.rank), str(self._count))
        self._answered = self._now()

    def look(self) -> str | None:
        """What is lost, as far as the store tells."""
        if self.rank and self.store.check(["lost"]):
            return str(self.store.get("lost").decode())
        beats = self.store.multi_get([str(rank) for rank in self.watched])  # waits for ranks that have yet to come
        now = self._now()
        for rank, beat in zip(self.watched, beats, strict=True):
            before, since = self._seen.get(rank, (b"", now))
            self._seen[rank] = (beat, since if beat == before else now)
        silent = [rank for rank, (_, since) in self._seen.items() if now - since > PATIENCE_SECONDS]
        if not silent:
            return None
        verdict = f"no sign of life from rank {', '.join(map(str, silent))} for {PATIENCE_SECONDS:g} s"
        if self.rank == 0:
            self.store.set("lost", verdict)
        return verdict

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self.beat()
                self._verdict = self._verdict or self.look()
            except RuntimeError:  # the rank or launcher that kept the store is gone
                self._verdict = "rank 0 or its launcher cannot be reached"
                return


def leave(message: str) -> None:
    """End this process at once, from any thread: a rank that waits for a lost one would wait for ever."""
    sys.stderr.write(f"latentfuse: {message}\n")
    sys.stderr.flush()
    os._exit(LostRank.exit_code)
