"""Shards -> uint8 micro-batches in the global order, by random access through the shards' index.

`FaceImages.micro_batches` is the whole way: a sampler names the images of each micro-batch, a plain `DataLoader` reads
and decodes them, here or in its workers, and each step gets its micro-batches as a list.
"""

import sys
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torchvision.io  # noqa: F401  # here, so that workers need not import it one by one
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.common.errors import UserError, one_line
from pipeline.config.schema import DataConfig
from pipeline.data import images
from pipeline.data.loading.order import Order
from pipeline.data.loading.workers import check_shared_memory, loaded
from pipeline.data.shards.reader import ShardReader

PREFETCH = 4
"""Micro-batches that each worker has ready or in work."""

Indices = NDArray[np.int64]
"""Images, by their number in the split."""


class Loaded(NamedTuple):
    """One image (3, S, S) uint8; and the images that could not be read and that it replaces, and why."""

    image: Tensor
    problems: tuple[str, ...]


class Batch(NamedTuple):
    """(m, 3, S, S) uint8, and the problems of all of them."""

    images: Tensor
    problems: tuple[str, ...]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes."""

    images: Tensor
    """(m, 3, S, S) uint8 in host memory."""
    span: slice
    """Which part of the step's global batch this is: the key of the random draws of its images."""
    flips: NDArray[np.bool_] | None = None
    """(m,): which of the images training is to mirror; it does so on its device."""
    keys: tuple[str, ...] = ()
    """Of the images, for messages; empty where they are not known."""


class FaceImages(Dataset[Loaded | UserError]):
    """The images of a split, cropped and resized: (3, S, S) uint8.

    An image that cannot be read is returned as the error it gave: raised in a worker, it would lose its one line.
    Where `max_bad_samples` allows some, the next good image of the split replaces it, and `problems` says so.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.reader = ShardReader(folder)
        self.config = config
        self._left_out: set[str] = set()

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Loaded | UserError:
        problems: list[UserError] = []
        while len(problems) <= self.config.max_bad_samples:
            number = (index + len(problems)) % len(self)
            try:
                image = images.decode(self.reader.image(number), self.reader.name(number))
            except UserError as error:
                problems.append(error)
            else:
                fitted = images.fit(image, self.config.image_size, self.config.crop)
                return Loaded(fitted, tuple(map(str, problems)))
        return problems[0]

    def __getitems__(self, indices: Indices) -> Batch | UserError:
        """What a `DataLoader` asks for: a whole micro-batch."""
        return collate([self[index] for index in indices.tolist()])

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.reader.folder)

    @property
    def content_hash(self) -> str:
        """The identity of the data, which a resumed run must meet again."""
        return self.reader.manifest.content_hash

    def load(self, indices: Iterable[int]) -> Tensor:
        """(number of indices, 3, S, S) in [-1, 1], to be measured: no image replaces another.

        Raises:
            UserError: naming shard and key, for an image that cannot be read.
        """
        batch = self._read(indices)
        if batch.problems:
            raise UserError(batch.problems[0])
        return images.normalise(batch.images)

    def load_as_trained(self, indices: Iterable[int]) -> Tensor:
        """As `load`, but as training has them: where data.max_bad_samples allows it, others replace bad images."""
        batch = self._read(indices)
        tolerate(batch.problems, self._left_out, self.config.max_bad_samples)
        return images.normalise(batch.images)

    def first(self, count: int) -> Tensor:
        """The first `count` images, or all, to be shown: as `load_as_trained`."""
        return self.load_as_trained(range(min(count, len(self))))

    def calibration(self, order: Order, count: int) -> Tensor:
        """The first `count` images of the order, whatever the rank: (count, 3, S, S) in [-1, 1]."""
        steps = range(-(-count // order.global_batch_size))
        indices = np.concatenate([order.indices(step) for step in steps])[:count]
        return images.normalise(self._read(indices.tolist()).images)

    def micro_batches(self, order: Order, first: int, last: int) -> Generator[list[MicroBatch], None, None]:
        """The micro-batches of this rank for each of the steps first .. last - 1. Close it, or the workers live on.

        Raises:
            UserError: naming shard and key, for an image that cannot be read.
        """
        spans, workers = order.slices(), self.config.workers
        check_shared_memory(workers, shared_memory(self.config, order.micro_batch_size))
        sampler = (order.indices(step)[span] for step in range(first, last) for span in spans)
        left_out: set[str] = set()
        with loaded(self, workers, PREFETCH, batch_sampler=sampler, collate_fn=_as_it_is) as batches:
            for step in range(first, last):
                indices = order.indices(step)
                flips = order.flips(step) & self.config.horizontal_flip
                micros = []
                for span in spans:
                    batch = or_raise(next(batches))
                    tolerate(batch.problems, left_out, self.config.max_bad_samples)
                    keys = tuple(map(self.reader.key, indices[span].tolist()))
                    micros.append(MicroBatch(batch.images, span, flips[span], keys))
                yield micros

    def _read(self, indices: Iterable[int]) -> Batch:
        return or_raise(collate([self[i] for i in indices]))


def shared_memory(config: DataConfig, micro_batch_size: int) -> int:
    """Bytes of it that the workers of one rank need: for the images that they have ready, and that training holds."""
    if not config.workers:
        return 0
    return (PREFETCH * config.workers + 2) * micro_batch_size * 3 * config.image_size**2


def _as_it_is(batch: Any) -> Any:
    return batch


def collate(items: list[Loaded | UserError]) -> Batch | UserError:
    """One batch of images, or the first error among them."""
    for item in items:
        if isinstance(item, UserError):
            return item
    found = cast(list[Loaded], items)
    stacked = torch.stack([each.image.movedim(0, -1) for each in found]).movedim(
        -1, 1
    )  # channels innermost, as decoded
    return Batch(stacked, tuple(problem for each in found for problem in each.problems))


def or_raise(batch: Batch | UserError) -> Batch:
    """The batch; an error from a worker is raised here."""
    if isinstance(batch, UserError):
        raise batch
    return batch


def tolerate(problems: tuple[str, ...], left_out: set[str], limit: int) -> None:
    """Say what is left out, once each; too many are an error."""
    for problem in problems:
        if problem in left_out:
            continue
        left_out.add(problem)
        if len(left_out) > limit:
            raise UserError(f"{problem}; more than data.max_bad_samples={limit} cannot be read: run `verify`")
        print(one_line(f"left out ({len(left_out)} of {limit} allowed): {problem}"), file=sys.stderr, flush=True)
