"""What `test_killed_shard` runs and kills. A module of its own: every child imports it."""

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.data.shards.array_jobs import Part
from pipeline.data.shards.writing import write_shards

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir"}
OPTIONS: dict[str, Any] = {"split": "0.3", "samples_per_shard": 2}


def shard(begun: Connection, source: Path, out: Path, workers: int, part: str | None, last: int | None) -> None:
    """Write shards in a process group of its own.

    Args:
        last: at this operation that changes `out`, counted in each process, the whole group is killed.
    """
    os.setsid()
    if last is not None:
        sys.addaudithook(_Killer(str(out), last))
    begun.send(None)
    write_shards(source, out, workers=workers, part=Part.parse(part) if part else None, **OPTIONS)


class _Killer:
    def __init__(self, out: str, left: int) -> None:
        self.out = out
        self.left = left

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event in CHANGES or (event == "open" and int(str(arguments[2])) & os.O_CREAT)
        if writes and str(arguments[0]).startswith(self.out):
            self.left -= 1
            if self.left == 0:
                os.killpg(0, signal.SIGKILL)
