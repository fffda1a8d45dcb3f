"""How fast photographs become shards, beside the bare decoder on as many processes. Files are in the page cache.

python benchmarks/sharding.py img_align_celeba.zip --images 3000 --workers 1
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.processes import default_workers, run_tasks
from pipeline.data.images import decode
from pipeline.data.shards.format import read_index
from pipeline.data.shards.packing import Options, cut, write_shard
from pipeline.data.source.photographs import Record, Source, open_source

ROUNDS = 3
SAMPLES = 1000
"""Per shard."""
IMAGES_PER_TASK = 64
HELD_BYTES = 2**30
"""The decoder's images are held in memory: the first so many bytes of them."""


def measure(path: Path, count: int, workers: int | None, folder: Path | None) -> dict[str, Any]:
    """Images per second of writing the first `count` images of a source as shards, and of decoding them from memory.

    Each is the median of rounds that take turns.

    Args:
        path: anything `open_source` takes; the time to open it does not count.
        workers: processes; None takes every processor.
        folder: on the disk to write to, with room for the images; None takes the system's temporary one.

    Raises:
        UserError: the source cannot be used, or an image is unusable.
    """
    workers = workers or default_workers()
    disk = folder or Path(tempfile.gettempdir())
    source = open_source(path)
    records = source.records[:count]
    held = _held(source, records)
    decoder, shard = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="latentfuse-bench-", dir=disk) as place:
            shard.append(_shard(source, records, Path(place), workers))
        decoder.append(_decoder(held, workers))
    rates = {"decoder": statistics.median(decoder), "shard": statistics.median(shard)}
    of_decoder = rates["shard"] / rates["decoder"]
    return {"images": len(records), "workers": workers, "folder": str(disk), **rates, "of_decoder": of_decoder}


def _held(source: Source, records: Sequence[Record]) -> list[bytes]:
    held: list[bytes] = []
    size = 0
    for record in records:
        held.append(source.read(record.name))
        size += len(held[-1])
        if size > HELD_BYTES:
            break
    return held


def _shard(source: Source, records: list[Record], folder: Path, workers: int) -> float:
    options = Options("0.1", SAMPLES, None, None, None)
    tasks = cut(folder, records, SAMPLES)
    began = time.perf_counter()
    list(run_tasks(write_shard, (source, options), tasks, workers))
    seconds = time.perf_counter() - began
    for rejected in (each for task in tasks for each in read_index(task.path).rejected):
        raise UserError(
            f"{source.reader.location}: {rejected.file}: {rejected.reason}; take a source without unusable images"
        )
    return len(records) / seconds


def _decoder(held: list[bytes], workers: int) -> float:
    """From the first image that any process starts to the last that ends."""
    times = list(run_tasks(_decode, held, range(0, len(held), IMAGES_PER_TASK), workers))
    return len(held) / (max(ended for _, ended in times) - min(began for began, _ in times))


def _decode(held: list[bytes], start: int) -> tuple[float, float]:
    began = time.perf_counter()
    for data in held[start : start + IMAGES_PER_TASK]:
        decode(data, "image")
    return began, time.perf_counter()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="as of `latentfuse shard`; only read")
    parser.add_argument("--images", type=int, default=15_000, help="how many to shard: the first by key")
    parser.add_argument("--workers", type=int, help="processes; default: every processor")
    parser.add_argument("--folder", type=Path, help="on the disk to write to; default: the system's temporary folder")
    options = parser.parse_args()
    print(json.dumps(measure(options.source, options.images, options.workers, options.folder), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
