"""How fast photographs become shards, beside the bare decoder on as many processes."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import os_errors_named
from pipeline.common.processes import default_workers, run_tasks
from pipeline.data.images import decode
from pipeline.data.shards.format import read_index, shard_name
from pipeline.data.shards.packing import Options, Task, write_shard
from pipeline.data.source.photographs import Record, Source, open_source

ROUNDS = 3
OPTIONS = Options("0.1", 1000, None, None, None)
IMAGES_PER_TASK = 64
HELD_BYTES = 2**30
"""The decoder's images are held in memory: the first so many bytes of them."""


@dataclass(frozen=True)
class Report:
    """Images per second: the median of rounds that take turns."""

    images: int
    workers: int
    folder: str
    decoder: float
    shard: float

    @property
    def of_decoder(self) -> float:
        """Sharding, as a share of what the decoder does with as many processes."""
        return self.shard / self.decoder

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"of_decoder": self.of_decoder}


def measure(path: Path, count: int, workers: int | None, folder: Path | None) -> Report:
    """Write the first `count` images of a source as shards, and decode them from memory, three times each.

    Args:
        path: anything `open_source` takes; the time to open it does not count.
        workers: processes; None takes every processor.
        folder: on the disk to write to, with room for the images; None takes the system's temporary one.

    Raises:
        UserError: the source or the folder cannot be used, or an image is unusable.
    """
    workers = workers or default_workers()
    disk = folder or Path(tempfile.gettempdir())
    source = open_source(path)
    records = source.records[:count]
    held = _held(source, records)
    decoder, shard = [], []
    for _ in range(ROUNDS):
        with os_errors_named(disk), tempfile.TemporaryDirectory(prefix="latentfuse-bench-", dir=disk) as place:
            shard.append(_shard(source, records, Path(place), workers))
        decoder.append(_decoder(held, workers))
    return Report(len(records), workers, str(disk), statistics.median(decoder), statistics.median(shard))


def as_text(report: Report) -> str:
    """A table for people."""
    return (
        f"{report.images} images, {report.workers} workers, in {report.folder}; images/s:\n"
        f"{'decoding all, bytes in memory':<40}{report.decoder:>9.0f}\n"
        f"{'shard':<40}{report.shard:>9.0f}   {report.of_decoder:.0%} of that"
    )


def _held(source: Source, records: Sequence[Record]) -> list[bytes]:
    """The first images, in memory."""
    held: list[bytes] = []
    size = 0
    for record in records:
        try:
            held.append(source.read(record.name))
        except OSError as error:
            raise UserError(f"{source.location}: {record.name} cannot be read: {error.strerror or error}") from None
        size += len(held[-1])
        if size > HELD_BYTES:
            break
    return held


def _shard(source: Source, records: list[Record], folder: Path, workers: int) -> float:
    """Images per second of writing these shards."""
    size = OPTIONS.samples_per_shard
    starts = range(0, len(records), size)
    tasks = [Task(folder / shard_name(start // size), tuple(records[start : start + size])) for start in starts]
    began = time.perf_counter()
    for _ in run_tasks(write_shard, (source, OPTIONS), tasks, workers):
        pass
    seconds = time.perf_counter() - began
    for task in tasks:
        for rejected in read_index(task.path).rejected:
            raise UserError(
                f"{source.location}: {rejected.file}: {rejected.reason}; take a source without unusable images"
            )
    return len(records) / seconds


def _decoder(held: list[bytes], workers: int) -> float:
    """Images per second of decoding alone, from the first image that any process starts to the last that ends."""
    starts = range(0, len(held), IMAGES_PER_TASK)
    times = list(run_tasks(_decode, held, starts, workers))
    return len(held) / (max(ended for _, ended in times) - min(began for began, _ in times))


def _decode(held: list[bytes], start: int) -> tuple[float, float]:
    began = time.perf_counter()
    for data in held[start : start + IMAGES_PER_TASK]:
        decode(data, "image")
    return began, time.perf_counter()
