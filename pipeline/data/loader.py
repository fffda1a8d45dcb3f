"""Shards -> uint8 micro-batches in the global order, by random access through the shards' index."""

import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class MicroBatch:
    images: Tensor
    """(m, 3, S, S) uint8, in host memory."""
    place: slice
    """Where in the step's global batch these images are: the key of their random draws."""
    indices: tuple[int, ...]
    """The images' places in the split, for messages."""


class FaceImages(Dataset[Tensor | UserError]):
    """The photographs of a split, cropped and resized: (3, S, S) uint8.

    A photograph that cannot be read is returned as the error it gave: raised in a worker it would lose its one line.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.reader = ShardReader(folder)
        self.config = config

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, item: Item) -> Tensor | UserError:
        index, flip = item
        try:
            _, data = self.reader.read(index)
            image = images.fit(images.decode(data, self.reader.name(index)), self.config.image_size, self.config.crop)
        except UserError as error:
            return error
        return image.flip(-1) if flip else image

    def load(self, indices: list[int]) -> Tensor:
        """(len(indices), 3, S, S) in [-1, 1], read here and now."""
        return images.normalise(_or_raise(_collate([self[i, False] for i in indices])))


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
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    batches = iter(loader)
    try:
        for step in range(first, last):
            indices = order.indices(step)
            step_batches = []
            for place in slices:
                batch = _or_raise(next(batches))
                step_batches.append(MicroBatch(batch, place, tuple(int(i) for i in indices[place])))
            yield step_batches
    finally:
        # Python would end them at exit, by the SIGTERM that they ignore, and wait for ever.
        getattr(batches, "_shutdown_workers", lambda: None)()


def _collate(items: list[Tensor | UserError]) -> Tensor | UserError:
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else torch.stack([item for item in items if isinstance(item, Tensor)])


def _or_raise(batch: Tensor | UserError) -> Tensor:
    if isinstance(batch, UserError):
        raise batch
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach every process of the group; only the trainer acts on them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
