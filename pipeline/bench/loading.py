"""How fast images come out of shards, beside the bare decoder and beside plain WebDataset with Pillow."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from pipeline import images
from pipeline.config import DataConfig
from pipeline.data.loader import FaceImages, follow_the_trainer
from pipeline.data.order import Order
from pipeline.errors import UserError

MICRO_BATCH = 16
ROUNDS = 3


@dataclass(frozen=True)
class Report:
    """Images per second: the median of rounds that take turns. `decoder` is one process on bytes in memory."""

    image_size: int
    workers: int
    images: int
    decoder: float
    loader: float
    webdataset: float

    @property
    def cores(self) -> int:
        return max(1, self.workers)

    @property
    def of_decoder(self) -> float:
        """The loader's rate per process, as a share of the decoder's."""
        return self.loader / (self.decoder * self.cores)

    @property
    def over_webdataset(self) -> float:
        return self.loader / self.webdataset

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"of_decoder": self.of_decoder, "over_webdataset": self.over_webdataset}


def measure(folder: Path, config: DataConfig, count: int) -> Report:
    """Read `count` images of a split in each of three rounds, each way, with `config.workers` processes.

    Raises:
        UserError: there are no shards, or an image cannot be read.
    """
    faces = FaceImages(folder, config)
    if not len(faces):
        raise UserError(f"{folder}: no images")
    steps = max(2, -(-count // MICRO_BATCH))
    ways: dict[str, Callable[[], float]] = {
        "decoder": lambda: _decoder(faces, steps * MICRO_BATCH),
        "loader": lambda: _loader(faces, steps),
        "webdataset": lambda: _webdataset(folder, faces, steps),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the loader's workers
    try:
        for _ in range(ROUNDS):
            for name, way in ways.items():
                rates[name].append(way())
    finally:
        torch.set_num_threads(threads)
    medians = {name: statistics.median(each) for name, each in rates.items()}
    return Report(config.image_size, config.workers, steps * MICRO_BATCH, **medians)


def as_text(report: Report) -> str:
    """A table for people."""
    return "\n".join(
        (
            f"{report.image_size} px, {report.workers} workers, {report.images} images a round; images/s:",
            f"{'decode_jpeg + resize, one process, bytes in memory':<52}{report.decoder:>9.0f}",
            f"{'loader':<52}{report.loader:>9.0f}   {report.of_decoder:.0%} of that per process",
            f"{'plain webdataset with Pillow':<52}{report.webdataset:>9.0f}   loader: {report.over_webdataset:.2f}x",
        )
    )


def _decoder(faces: FaceImages, count: int) -> float:
    reader, config = faces.reader, faces.config
    held = [reader.read(i % len(reader))[1] for i in range(min(count, 1000))]
    began = time.perf_counter()
    for i in range(count):
        images.fit(images.decode(held[i % len(held)], "image"), config.image_size, config.crop)
    return count / (time.perf_counter() - began)


def _loader(faces: FaceImages, steps: int) -> float:
    order = Order(len(faces), 0, MICRO_BATCH, MICRO_BATCH)
    batches = faces.micro_batches(order, 0, _needed(steps, faces.config.workers))
    try:
        return _rate(batches, steps, faces.config.workers)
    finally:
        batches.close()


def _webdataset(folder: Path, faces: FaceImages, steps: int) -> float:
    tars = [str(folder / shard.file) for shard in faces.reader.index.manifest.shards]
    dataset = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False)
    with_pillow = dataset.decode("pil").map(_Fit(faces.config)).repeat()
    loader = DataLoader(
        with_pillow,
        batch_size=MICRO_BATCH,
        num_workers=faces.config.workers,
        prefetch_factor=4 if faces.config.workers else None,
        worker_init_fn=follow_the_trainer,
    )
    batches = iter(loader)
    try:
        return _rate(batches, steps, faces.config.workers)
    finally:
        getattr(batches, "_shutdown_workers", lambda: None)()


class _Fit:
    """Pillow's crop and resize of a sample; a class, so that it can be sent to workers."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __call__(self, sample: dict[str, Any]) -> np.ndarray:
        picture = next(sample[extension] for extension in ("jpg", "jpeg", "png") if extension in sample)
        picture = picture.convert("RGB")
        side = min(self.config.crop or picture.height, picture.height, picture.width)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        size, box = (self.config.image_size, self.config.image_size), (left, top, left + side, top + side)
        return np.array(picture.resize(size, Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)


def _needed(steps: int, workers: int) -> int:
    return steps + _head(workers)


def _head(workers: int) -> int:
    """Batches that are not timed: the start of the workers, and what they have ready by then."""
    return 1 + 5 * workers


def _rate(batches: Iterator[Any] | Iterable[Any], steps: int, workers: int) -> float:
    """Images per second over the batches after the first."""
    taken = iter(batches)
    for _ in range(_head(workers)):
        next(taken)
    began = time.perf_counter()
    for _ in range(steps):
        next(taken)
    return steps * MICRO_BATCH / (time.perf_counter() - began)
