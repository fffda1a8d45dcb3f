"""How fast images come out of shards and caches, beside the bare decoder and beside plain WebDataset with Pillow."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.common.devices import keep_freed_memory
from pipeline.common.errors import UserError
from pipeline.common.files import os_errors_named
from pipeline.config.schema import DataConfig
from pipeline.data.images import decode, fit
from pipeline.data.loading.cache import one_thread
from pipeline.data.loading.loader import BLOCK_IMAGES, PREFETCH, FaceImages, memory
from pipeline.data.loading.order import Order
from pipeline.data.loading.streaming import EXTENSIONS
from pipeline.data.loading.workers import end_workers, follow_the_trainer

MICRO_BATCH, GLOBAL_BATCH = 16, 128
"""As in training on one device, by default."""
HELD = 4096
"""Decoded images in the caches that are timed: far more than a processor's own cache holds."""
ROUNDS = 5


@dataclass(frozen=True)
class Report:
    """Images per second: the best of rounds that take turns. `decoder` is one process on bytes in memory."""

    image_size: int
    workers: int
    images: int
    device: str
    decoder: float
    loader: float
    """With `workers` processes."""
    loader_0: float
    """In the training process alone."""
    loader_1: float
    """With one process beside the training process."""
    webdataset: float
    disk_cache: float
    device_cache: float

    @property
    def of_decoder(self) -> float:
        """The loader's rate per process, as a share of the decoder's."""
        return self.loader / (self.decoder * max(1, self.workers))

    @property
    def device_batch_ms(self) -> float:
        """Milliseconds for a step of `GLOBAL_BATCH` images, as one micro-batch, from the cache on the device."""
        return 1000 * GLOBAL_BATCH / self.device_cache

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "of_decoder": self.of_decoder,
            "of_decoder_0": self.loader_0 / self.decoder,
            "of_decoder_1": self.loader_1 / self.decoder,
            "over_webdataset": self.loader / self.webdataset,
            "disk_cache_over_decoder": self.disk_cache / self.decoder,
            "device_cache_over_decoder": self.device_cache / self.decoder,
            "device_batch": GLOBAL_BATCH,
            "device_batch_ms": self.device_batch_ms,
        }


def measure(folder: Path, config: DataConfig, count: int) -> Report:
    """Read `count` images of a split in each of the rounds, each way; all but one process apiece compute nothing else.

    Raises:
        UserError: there are no shards, or an image cannot be read.
    """
    faces = FaceImages(folder, config)
    if not len(faces):
        raise UserError(f"{folder}: no images")
    images = GLOBAL_BATCH * max(2, -(-count // GLOBAL_BATCH))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as in training
    with tempfile.TemporaryDirectory(prefix="latentfuse-bench-") as place, one_thread():  # as in the loader's workers
        disk = _decoded(faces, Path(place) / "pixels.u8")
        ways: dict[str, Callable[[], float]] = {
            "decoder": lambda: _decoder(faces, images),
            "loader": lambda: _loader(faces, images, config.workers),
            "loader_0": lambda: _loader(faces, images, 0),
            "loader_1": lambda: _loader(faces, images, 1),
            "webdataset": lambda: _webdataset(folder, faces, images),
            "disk_cache": lambda: _cache(faces, disk, 10 * images),
            "device_cache": lambda: _cache(faces, on_device, 10 * images),
        }
        on_device = disk.to(device, copy=True)
        best = dict.fromkeys(ways, 0.0)
        for _ in range(ROUNDS):
            for name, way in ways.items():
                best[name] = max(best[name], way())
    return Report(config.image_size, config.workers, images, _name(device), **best)


def as_text(report: Report) -> str:
    """A table for people."""
    decoder = report.decoder
    rows = (
        ("decode_jpeg + resize, one process, bytes in memory", decoder, ""),
        ("loader, in the training process", report.loader_0, f"{report.loader_0 / decoder:.0%} of that"),
        ("loader, 1 worker", report.loader_1, f"{report.loader_1 / decoder:.0%} of that"),
        (f"loader, data.workers={report.workers}", report.loader, f"{report.of_decoder:.0%} of that per process"),
        (
            "plain webdataset with Pillow, as many",
            report.webdataset,
            f"loader: {report.loader / report.webdataset:.2f}x",
        ),
        ("data.cache=disk", report.disk_cache, f"{report.disk_cache / decoder:.0f}x decode_jpeg + resize"),
        (
            f"data.cache=device, on {report.device}",
            report.device_cache,
            f"{report.device_cache / decoder:.0f}x; {report.device_batch_ms:.3f} ms for {GLOBAL_BATCH} images",
        ),
    )
    head = f"{report.image_size} px, {report.images} images a round; images/s, the best of {ROUNDS} rounds:"
    return "\n".join((head, *(f"{what:<52}{rate:>9.0f}   {ratio}".rstrip() for what, rate, ratio in rows)))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _decoded(faces: FaceImages, path: Path) -> torch.Tensor:
    """(n, 3, S, S) uint8: the first images, mapped from a file."""
    count, size = min(len(faces), HELD), faces.config.image_size
    with os_errors_named(path), path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, count * 3 * size**2)  # a full disk is found out here
    pixels = torch.from_file(str(path), shared=True, size=count * 3 * size**2, dtype=torch.uint8)
    pixels = pixels.view(count, 3, size, size)
    faces.fill(pixels, np.arange(count))
    return pixels


def _decoder(faces: FaceImages, count: int) -> float:
    reader, config = faces.reader, faces.config
    held = [reader.read(i % len(reader))[1] for i in range(min(count, 1000))]
    began = time.perf_counter()
    for i in range(count):
        fit(decode(held[i % len(held)], "image"), config.image_size, config.crop, memory(1, config.image_size)[0])
    return count / (time.perf_counter() - began)


def _loader(faces: FaceImages, count: int, workers: int) -> float:
    faces = copy(faces)
    faces.config = faces.config.model_copy(update={"workers": workers})
    order = Order(len(faces), 0, GLOBAL_BATCH, MICRO_BATCH)
    head, steps = 1 + _ready(workers, GLOBAL_BATCH), count // GLOBAL_BATCH
    with closing(faces.micro_batches(order, 0, head + steps + _ready(workers, GLOBAL_BATCH))) as batches:
        return _rate(batches, head, steps) * GLOBAL_BATCH


def _cache(faces: FaceImages, pixels: torch.Tensor, count: int) -> float:
    faces = copy(faces)
    faces.pixels = pixels
    steps = max(2, count // GLOBAL_BATCH)
    with closing(faces.micro_batches(Order(len(pixels), 0, GLOBAL_BATCH, GLOBAL_BATCH), 0, steps + 1)) as batches:
        next(batches)
        _wait_for(pixels.device)
        began = time.perf_counter()
        for _ in batches:
            pass
        _wait_for(pixels.device)
        return steps * GLOBAL_BATCH / (time.perf_counter() - began)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _webdataset(folder: Path, faces: FaceImages, count: int) -> float:
    tars = [str(folder / shard.file) for shard in faces.reader.index.manifest.shards]
    dataset = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False)
    with_pillow = dataset.select(_has_image).decode("pil").map(_Fit(faces.config)).repeat()
    loader = DataLoader(
        with_pillow,
        batch_size=MICRO_BATCH,
        num_workers=faces.config.workers,
        prefetch_factor=PREFETCH * BLOCK_IMAGES // MICRO_BATCH if faces.config.workers else None,
        worker_init_fn=follow_the_trainer,
    )
    batches = iter(loader)
    try:
        head = 1 + _ready(faces.config.workers, MICRO_BATCH)
        return _rate(batches, head, count // MICRO_BATCH) * MICRO_BATCH
    finally:
        end_workers(batches)


def _has_image(sample: dict[str, Any]) -> bool:
    """As the index does without those that have none."""
    return any(extension in sample for extension in EXTENSIONS)


class _Fit:
    """Pillow's crop and resize of a sample; a class, so that it can be sent to workers."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __call__(self, sample: dict[str, Any]) -> np.ndarray:
        picture = next(sample[extension] for extension in EXTENSIONS if extension in sample)
        picture = picture.convert("RGB")
        side = min(self.config.crop or picture.height, picture.height, picture.width)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        size, box = (self.config.image_size, self.config.image_size), (left, top, left + side, top + side)
        return np.array(picture.resize(size, Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)


def _ready(workers: int, images: int) -> int:
    """Batches of so many images that workers may have ready, rounded up, with one more for each worker."""
    return workers * (1 + -(-PREFETCH * BLOCK_IMAGES // images))


def _rate(batches: Iterator[Any], head: int, steps: int) -> float:
    """Batches per second, without the first: the start of the workers, and what they have ready by then."""
    for _ in range(head):
        next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps / (time.perf_counter() - began)
