"""Shards -> uint8 micro-batches in the global order, by random access through the shards' index."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.common.errors import UserError
from pipeline.common.processes import signals_held
from pipeline.config.schema import DataConfig
from pipeline.data import images
from pipeline.data.loading.order import Order
from pipeline.data.loading.workers import end_workers, follow_the_trainer, too_little_shared_memory
from pipeline.data.shards.reader import ShardReader

PREFETCH = 2
"""Blocks that each worker has ready or in work."""
BLOCK_IMAGES = 64
"""Small micro-batches of a step are loaded together, up to so many images: a block costs a worker 0.6 ms."""

Indices = NDArray[np.int64]
"""The images of a batch, by their place in the split."""


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
    """(m, 3, S, S) uint8, in host memory, or on the device where data.cache is `device`."""
    place: slice
    """Where in the step's global batch these images are: the key of their random draws."""
    flips: NDArray[np.bool_] | None = None
    """(m,): which of the images training is to mirror; it does so on its device."""
    find_keys: Callable[[], tuple[str, ...]] = tuple

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the images, for messages; empty where they are not known."""
        return self.find_keys()


class FaceImages(Dataset[Loaded | UserError]):
    """The photographs of a split, cropped and resized: (3, S, S) uint8.

    A photograph that cannot be read is returned as the error it gave: raised in a worker it would lose its one line.
    Where `max_bad_samples` allows some, the next good one of the split takes its place, and `problems` says so.
    """

    pixels: Tensor | None = None
    """(N, 3, S, S) uint8, in host memory or on a device: every image, where they are decoded already (`cache`)."""

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.reader = ShardReader(folder)
        self.config = config
        self._left_out: set[str] = set()

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Loaded | UserError:
        problems: list[UserError] = []
        while len(problems) <= self.config.max_bad_samples:
            try:
                image = self._image((index + len(problems)) % len(self))
            except UserError as error:
                problems.append(error)
            else:
                return Loaded(image, tuple(map(str, problems)))
        return problems[0]

    def fill(self, batch: Tensor, indices: Indices) -> tuple[str, ...]:
        """Read and decode these images into `batch`, (m, 3, S, S) uint8.

        Returns:
            The problems of photographs that others stand in for.

        Raises:
            UserError: naming shard and key, for an image that cannot be read.
        """
        problems: list[str] = []
        # Read first: decoding is slower just after a call of the system.
        encoded = [(index, self._encoded(index)) for index in indices.tolist()]
        for place, (index, data) in zip(batch.unbind(), encoded, strict=True):
            try:
                self._image(index, place, data)
            except UserError:
                loaded = self[index]
                if isinstance(loaded, UserError):
                    raise loaded from None
                place.copy_(loaded.image)
                problems += loaded.problems
        return tuple(problems)

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.reader.folder)

    @property
    def content_hash(self) -> str:
        """The identity of the data, which a resumed run must meet again."""
        return self.reader.index.manifest.content_hash

    def load(self, indices: Iterable[int]) -> Tensor:
        """(number of indices, 3, S, S) in [-1, 1], to be measured: none stands in for another.

        Raises:
            UserError: naming shard and key, for an image that cannot be read.
        """
        batch = or_raise(collate([self[i] for i in indices]))
        if batch.problems:
            raise UserError(batch.problems[0])
        return images.normalise(batch.images)

    def load_as_trained(self, indices: Iterable[int]) -> Tensor:
        """As `load`, but as training has them: where data.max_bad_samples allows it, others stand in."""
        batch = or_raise(collate([self[i] for i in indices]))
        tolerate(batch.problems, self._left_out, self.config.max_bad_samples)
        return images.normalise(batch.images)

    def first(self, count: int) -> Tensor:
        """The first `count` images, or all, to be shown: as `load_as_trained`."""
        return self.load_as_trained(range(min(count, len(self))))

    def calibration(self, order: Order, count: int) -> Tensor:
        """The first `count` images of the order, whatever the rank: (count, 3, S, S) in [-1, 1]."""
        steps = range(-(-count // order.global_batch_size))
        indices = np.concatenate([order.indices(step) for step in steps])[:count].tolist()
        return images.normalise(or_raise(collate([self[i] for i in indices])).images)

    def micro_batches(self, order: Order, first: int, last: int) -> Generator[list[MicroBatch], None, None]:
        """As the function of this name."""
        return micro_batches(self, order, first, last)

    def batches(self, plan: Iterator[Indices], largest: int) -> Generator[Batch, None, None]:
        """One batch for each of `plan`, of `largest` images or fewer. Close it, or the workers live on.

        Raises:
            UserError: as `fill`.
        """
        if self.pixels is not None:
            return _gathered(self.pixels, plan)
        return _by_workers(self, plan, largest) if self.config.workers else _here(self, plan)

    def _image(self, index: int, out: Tensor | None = None, data: bytes | None = None) -> Tensor:
        image = images.decode(data or self.reader.image(index), _Name(self.reader, index))
        return images.fit(image, self.config.image_size, self.config.crop, out)

    def _encoded(self, index: int) -> bytes | None:
        try:
            return self.reader.image(index)
        except UserError:
            return None


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
    slices = order.slices()
    together = max(1, BLOCK_IMAGES // order.micro_batch_size)
    blocks = [slices[start : start + together] for start in range(0, len(slices), together)]
    drawn: dict[int, Indices] = {}

    def plan() -> Iterator[Indices]:
        for step in range(first, last):
            drawn[step] = order.indices(step)
            for block in blocks:
                yield drawn[step][block[0].start : block[-1].stop]

    left_out: set[str] = set()
    with closing(dataset.batches(plan(), order.micro_batch_size * len(blocks[0]))) as batches:
        for step in range(first, last):
            step_batches = []
            flips = order.flips(step) & dataset.config.horizontal_flip
            for block in blocks:
                batch = next(batches)
                tolerate(batch.problems, left_out, dataset.config.max_bad_samples)
                for place, images in zip(block, batch.images.split(order.micro_batch_size), strict=True):
                    find_keys = partial(_keys, dataset, drawn[step][place])
                    step_batches.append(MicroBatch(images, place, flips[place], find_keys))
            del drawn[step]
            yield step_batches


def _keys(faces: FaceImages, indices: Indices) -> tuple[str, ...]:
    return tuple(map(faces.reader.index.key, indices.tolist()))


def _here(faces: FaceImages, plan: Iterator[Indices]) -> Generator[Batch, None, None]:
    for indices in plan:
        images = memory(len(indices), faces.config.image_size)
        yield Batch(images, faces.fill(images, indices))


def _by_workers(faces: FaceImages, plan: Iterator[Indices], largest: int) -> Generator[Batch, None, None]:
    """Workers write into shared memory that was made once: as much again for every batch takes 40 us per image."""
    workers, size = faces.config.workers, faces.config.image_size
    # The loader asks for that many batches ahead of the one it hands out, which is copied before the next.
    slots = torch.empty((PREFETCH * workers + 1, largest, size, size, 3), dtype=torch.uint8)
    try:
        slots = slots.share_memory_().movedim(-1, 2)
    except RuntimeError:
        raise too_little_shared_memory(workers, slots.numel()) from None
    loader = DataLoader(
        _Slots(faces, slots),
        batch_sampler=([number % len(slots), indices] for number, indices in enumerate(plan)),
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=PREFETCH,
        worker_init_fn=follow_the_trainer,
    )
    batches: Iterator[Any] = iter(())
    try:
        with signals_held():
            batches = iter(loader)
        for number, filled in enumerate(batches):
            if isinstance(filled, UserError):
                raise filled
            count, problems = filled
            images = memory(count, size).copy_(slots[number % len(slots), :count])
            yield Batch(images, problems)
    finally:
        end_workers(batches)


class _Slots(Dataset[Any]):
    """What a worker does: fill one of `slots`, (number, m, 3, S, S) uint8 in shared memory."""

    def __init__(self, faces: FaceImages, slots: Tensor) -> None:
        self.faces, self.slots = faces, slots

    def __getitems__(self, task: list[Any]) -> tuple[int, tuple[str, ...]] | UserError:
        """The number of images, and problems. Raised in a worker, an error would lose its one line."""
        slot, indices = task
        count = len(indices)
        try:
            return count, self.faces.fill(self.slots[slot, :count], indices)
        except UserError as error:
            return error


def _as_it_is(filled: Any) -> Any:
    return filled


def _gathered(pixels: Tensor, plan: Iterator[Indices]) -> Generator[Batch, None, None]:
    """Batches of images that are decoded already, where those are; nothing here waits for a GPU."""
    for indices in map(torch.from_numpy, plan):
        if pixels.device.type == "cpu":
            images = memory(len(indices), pixels.shape[-1], torch.contiguous_format)
            yield Batch(torch.index_select(pixels, 0, indices, out=images), ())
        else:
            yield Batch(pixels.index_select(0, indices.pin_memory().to(pixels.device, non_blocking=True)), ())


def memory(count: int, size: int, memory_format: torch.memory_format = torch.channels_last) -> Tensor:
    """(count, 3, size, size) uint8 in host memory from which a GPU copies without waiting.

    Channels last, as images are decoded: resizing into anything else takes a third longer.
    """
    shape, pinned = (count, 3, size, size), torch.cuda.is_available()
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned, memory_format=memory_format)


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
