"""How fast images come out of shards, beside the bare decoder and beside plain WebDataset with Pillow."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from pipeline.common.devices import keep_freed_memory
from pipeline.common.errors import UserError
from pipeline.config.schema import DataConfig
from pipeline.data.images import decode, fit
from pipeline.data.loading.loader import PREFETCH, FaceImages
from pipeline.data.loading.order import Order
from pipeline.data.loading.streaming import EXTENSIONS
from pipeline.data.loading.workers import loaded

MICRO_BATCH, GLOBAL_BATCH = 16, 128
"""As in training on one device, by default."""
ROUNDS = 5


@dataclass(frozen=True)
class Report:
    """Images per second: the best of rounds that take turns. `decoder` is one process on bytes in memory."""

    image_size: int
    workers: int
    images: int
    decoder: float
    loader: float
    """With `workers` processes."""
    loader_0: float
    """In the training process alone."""
    loader_1: float
    """With one process beside the training process."""
    webdataset: float

    @property
    def of_decoder(self) -> float:
        """The loader's rate per process, as a share of the decoder's."""
        return self.loader / (self.decoder * max(1, self.workers))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "of_decoder": self.of_decoder,
            "of_decoder_0": self.loader_0 / self.decoder,
            "of_decoder_1": self.loader_1 / self.decoder,
            "over_webdataset": self.loader / self.webdataset,
        }


def measure(folder: Path, config: DataConfig, count: int) -> Report:
    """Read `count` images of a split in each of the rounds, each way.

    Raises:
        UserError: there are no shards, or an image cannot be read.
    """
    faces = FaceImages(folder, config)
    if not len(faces):
        raise UserError(f"{folder}: no images")
    images = GLOBAL_BATCH * max(2, -(-count // GLOBAL_BATCH))
    if not torch.cuda.is_available():
        keep_freed_memory()  # as in training
    ways: dict[str, Callable[[], float]] = {
        "decoder": lambda: _decoder(faces, images),
        "loader": lambda: _loader(faces, images, config.workers),
        "loader_0": lambda: _loader(faces, images, 0),
        "loader_1": lambda: _loader(faces, images, 1),
        "webdataset": lambda: _webdataset(folder, faces, images),
    }
    best = dict.fromkeys(ways, 0.0)
    with _one_thread():  # as in the loader's workers
        for _ in range(ROUNDS):
            for name, way in ways.items():
                best[name] = max(best[name], way())
    return Report(config.image_size, config.workers, images, **best)


def as_text(report: Report) -> str:
    """A table for people."""
    decoder = report.decoder
    rows = (
        ("decode_jpeg + resize, one process, bytes in memory", decoder, ""),
        ("loader, in the training process", report.loader_0, f"{report.loader_0 / decoder:.0%} of that"),
        ("loader, 1 worker", report.loader_1, f"{report.loader_1 / decoder:.0%} of that"),
        (f"loader, data.workers={report.workers}", report.loader, f"{report.of_decoder:.0%} of that per process"),
        ("plain webdataset with Pillow", report.webdataset, f"loader: {report.loader / report.webdataset:.2f}x"),
    )
    head = f"{report.image_size} px, {report.images} images a round; images/s, the best of {ROUNDS} rounds:"
    return "\n".join((head, *(f"{what:<52}{rate:>9.0f}   {ratio}".rstrip() for what, rate, ratio in rows)))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _decoder(faces: FaceImages, count: int) -> float:
    reader, config = faces.reader, faces.config
    held = [reader.read(i % len(reader))[1] for i in range(min(count, 1000))]
    began = time.perf_counter()
    for i in range(count):
        fit(decode(held[i % len(held)], "image"), config.image_size, config.crop)
    return count / (time.perf_counter() - began)


def _loader(faces: FaceImages, count: int, workers: int) -> float:
    faces = copy(faces)
    faces.config = faces.config.model_copy(update={"workers": workers})
    order = Order(len(faces), 0, GLOBAL_BATCH, MICRO_BATCH)
    head, steps = 1 + _ready(workers, GLOBAL_BATCH), count // GLOBAL_BATCH
    with closing(faces.micro_batches(order, 0, head + steps + _ready(workers, GLOBAL_BATCH))) as batches:
        return _rate(batches, head, steps) * GLOBAL_BATCH


def _webdataset(folder: Path, faces: FaceImages, count: int) -> float:
    tars = [str(folder / shard.file) for shard in faces.reader.manifest.shards]
    dataset = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False)
    with_pillow = dataset.select(_has_image).decode("pil").map(_Fit(faces.config)).repeat()
    workers = faces.config.workers
    with loaded(with_pillow, workers, PREFETCH, batch_size=MICRO_BATCH) as batches:
        return _rate(batches, 1 + _ready(workers, MICRO_BATCH), count // MICRO_BATCH) * MICRO_BATCH


def _has_image(sample: dict[str, Any]) -> bool:
    """The index leaves out samples that have none, too."""
    return any(extension in sample for extension in EXTENSIONS)


class _Fit:
    """Pillow's crop and resize of a sample; a class, so that it can be sent to workers."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __call__(self, sample: dict[str, Any]) -> np.ndarray:
        picture = next(sample[extension] for extension in EXTENSIONS if extension in sample).convert("RGB")
        side = min(self.config.crop or picture.height, picture.height, picture.width)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        size, box = (self.config.image_size, self.config.image_size), (left, top, left + side, top + side)
        return np.array(picture.resize(size, Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)


def _ready(workers: int, images: int) -> int:
    """Batches of `images` images that workers may have ready, rounded up, with one more for each worker."""
    return workers * (1 + -(-PREFETCH * MICRO_BATCH // images))


def _rate(batches: Iterator[Any], head: int, steps: int) -> float:
    """Batches per second, without the first `head`: the start of the workers, and what they have ready by then."""
    for _ in range(head):
        next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps / (time.perf_counter() - began)
