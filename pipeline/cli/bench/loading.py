"""How fast images come out of shards, beside the bare decoder and beside plain WebDataset with Pillow."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import copy
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


def measure(folder: Path, config: DataConfig, count: int) -> dict[str, Any]:
    """Images per second of reading `count` images of a split in several ways: the best of rounds that take turns.

    `decoder` is one process on bytes in memory; `loader_0` is the training process alone, `loader_1` with one beside
    it, `loader` with `data.workers`. What starts with `of_` is a share of the decoder's rate, per process.

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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the loader's workers
    try:
        for _ in range(ROUNDS):
            for name, way in ways.items():
                best[name] = max(best[name], way())
    finally:
        torch.set_num_threads(threads)
    return {
        "image_size": config.image_size,
        "workers": config.workers,
        "images": images,
        **best,
        "of_decoder": best["loader"] / (best["decoder"] * max(1, config.workers)),
        "of_decoder_0": best["loader_0"] / best["decoder"],
        "of_decoder_1": best["loader_1"] / best["decoder"],
        "over_webdataset": best["loader"] / best["webdataset"],
    }


def as_text(report: dict[str, Any]) -> str:
    """A table for people."""
    rows = (
        ("decode_jpeg + resize, one process, bytes in memory", "{decoder:>9.0f}"),
        ("loader, in the training process", "{loader_0:>9.0f}   {of_decoder_0:.0%} of that"),
        ("loader, 1 worker", "{loader_1:>9.0f}   {of_decoder_1:.0%} of that"),
        ("loader, data.workers={workers}", "{loader:>9.0f}   {of_decoder:.0%} of that per process"),
        ("plain webdataset with Pillow", "{webdataset:>9.0f}   loader: {over_webdataset:.2f}x"),
    )
    head = f"{report['image_size']} px, {report['images']} images a round; images/s, the best of {ROUNDS} rounds:"
    return "\n".join((head, *(f"{what.format_map(report):<52}{rate.format_map(report)}" for what, rate in rows)))


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
        self.crop, self.size = config.crop, config.image_size

    def __call__(self, sample: dict[str, Any]) -> np.ndarray:
        picture = next(sample[extension] for extension in EXTENSIONS if extension in sample).convert("RGB")
        side = min(self.crop or picture.height, *picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        return np.array(picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box)).transpose(2, 0, 1)


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
