"""Shards -> uint8 micro-batches in the global order, by random access through the shards' index."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline import images
from pipeline.config import DataConfig
from pipeline.data.order import Order
from pipeline.data.shards import ShardReader
from pipeline.errors import UserError

Item = tuple[int, bool]
"""Index of an image in the split, and whether to mirror it."""


class Loaded(NamedTuple):
    image: Tensor
    """(3, S, S) uint8."""
    problems: tuple[str, ...]
    """Photographs that could not be read before this one could, and why."""


class Batch(NamedTuple):
    images: Tensor
    """(m, 3, S, S) uint8."""
    problems: tuple[str, ...]


@dataclass(frozen=True)
class MicroBatch:
    images: Tensor
    """(m, 3, S, S) uint8, in host memory."""
    place: slice
    """Where in the step's global batch these images are: the key of their random draws."""
    keys: tuple[str, ...]
    """Of the images, for messages; empty where they are not known."""


class FaceImages(Dataset[Loaded | UserError]):
    """The photographs of a split, cropped and resized: (3, S, S) uint8.

    A photograph that cannot be read is returned as the error it gave: raised in a worker it would lose its one line.
    Where `max_bad_samples` allows some, the next good one of the split takes its place, and `problems` says so.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.reader = ShardReader(folder)
        self.config = config

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, item: Item) -> Loaded | UserError:
        index, flip = item
        problems: list[UserError] = []
        while len(problems) <= self.config.max_bad_samples:
            try:
                image = self._image((index + len(problems)) % len(self))
            except UserError as error:
                problems.append(error)
            else:
                return Loaded(image.flip(-1) if flip else image, tuple(map(str, problems)))
        return problems[0]

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.reader.folder)

    @property
    def content_hash(self) -> str:
        """The identity of the data, which a resumed run must meet again."""
        return self.reader.index.manifest.content_hash

    def load(self, indices: list[int]) -> Tensor:
        """(len(indices), 3, S, S) in [-1, 1], read here and now."""
        batch = or_raise(collate([self[i, False] for i in indices]))
        if batch.problems:
            raise UserError(batch.problems[0])
        return images.normalise(batch.images)

    def calibration(self, order: Order, count: int) -> Tensor:
        """The first `count` images of the order, whatever the rank: (count, 3, S, S) in [-1, 1]."""
        steps = range(-(-count // order.global_batch_size))
        indices = np.concatenate([order.indices(step) for step in steps])[:count].tolist()
        return images.normalise(or_raise(collate([self[i, False] for i in indices])).images)

    def micro_batches(self, order: Order, first: int, last: int) -> Generator[list[MicroBatch], None, None]:
        """As the function of this name."""
        return micro_batches(self, order, first, last)

    def _image(self, index: int) -> Tensor:
        _, data = self.reader.read(index)
        name = _Name(self.reader, index)
        return images.fit(images.decode(data, name), self.config.image_size, self.config.crop)


class _Name(NamedTuple):
    """Shard and key of an image; as text only when a message needs it: it takes 20 us."""

    reader: ShardReader
    place: int

    def __str__(self) -> str:
        return self.reader.name(self.place)


def micro_batches(dataset: FaceImages, order: Order, first: int, last: int) -> Generator[list[MicroBatch], None, None]:
    """The micro-batches of this rank for each of the steps first .. last - 1. Close it, or the workers live on.

    Raises:
        UserError: naming shard and key, for an image that cannot be read.
    """
    config = dataset.config
    slices = order.slices()

    def plan() -> Iterator[list[Item]]:
        for step in range(first, last):
            indices = order.indices(step)
            flips = order.flips(step) & config.horizontal_flip
            for place in slices:
                yield [(int(i), bool(f)) for i, f in zip(indices[place], flips[place], strict=True)]

    loader = DataLoader(
        dataset,
        batch_sampler=plan(),
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=follow_the_trainer,
    )
    batches = iter(loader)
    left_out: set[str] = set()
    try:
        for step in range(first, last):
            indices = order.indices(step)
            step_batches = []
            for place in slices:
                batch = or_raise(next(batches))
                tolerate(batch.problems, left_out, config.max_bad_samples)
                keys = tuple(map(dataset.reader.index.key, indices[place]))
                step_batches.append(MicroBatch(batch.images, place, keys))
            yield step_batches
    finally:
        # Python would end them at exit, by the SIGTERM that they ignore, and wait for ever.
        getattr(batches, "_shutdown_workers", lambda: None)()


def collate(items: list[Loaded | UserError]) -> Batch | UserError:
    errors = [item for item in items if isinstance(item, UserError)]
    if errors:
        return errors[0]
    loaded = [item for item in items if isinstance(item, Loaded)]
    return Batch(torch.stack([each.image for each in loaded]), tuple(p for each in loaded for p in each.problems))


def or_raise(batch: Batch | UserError) -> Batch:
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
        print(f"left out ({len(left_out)} of {limit} allowed): {problem}", file=sys.stderr, flush=True)


def follow_the_trainer(worker: int) -> None:
    """For loader workers. Ctrl-C and a scheduler's signals reach every process of the group; only the trainer acts on
    them, and whatever ends it ends its workers: torch's own watch does not see a worker whose queue is full.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers run this"
    parent.join()
    os._exit(1)
