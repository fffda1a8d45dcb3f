"""Tars at a distance -> uint8 micro-batches, read in sequence: for data larger than one node's disk."""

import hashlib
import math
import os
import random
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain, cycle, islice, repeat
from typing import Any

import torch
import webdataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys

from pipeline.common.errors import UserError
from pipeline.config.schema import DataConfig
from pipeline.data import images
from pipeline.data.loading.loader import Loaded, MicroBatch, collate, or_raise, tolerate
from pipeline.data.loading.order import Order
from pipeline.data.loading.workers import check_shared_memory, loaded
from pipeline.data.remote import blocks
from pipeline.data.shards.tar import BLOCK, BoundedHeader, check_size

SHUFFLE_BUFFER = 1000
"""Encoded images that each worker keeps to draw from: what mixes the images of a shard with those of others."""
PREFETCH = 4
"""Micro-batches that each worker has ready or in work."""
EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_URLS = 10**6

Sample = tuple[str, bytes]
"""URL and key, for messages; and the encoded image."""


class StreamedFaces:
    """Training images from tars that are read in sequence, wherever they are.

    Every worker draws shards with replacement, so any number of shards serves any number of ranks, and none runs out.
    Not exactly resumable: a run that starts again at a step draws anew, other images than it would have seen, and
    those of an epoch are seen once on average only. What a step sees depends on the number of ranks and of workers.

    Args:
        urls: paths, http://, https:// or s3:// URLs, or `pipe:` commands, with WebDataset's braces: a-{000..123}.tar.

    Raises:
        UserError: `urls` names no tar.
    """

    def __init__(self, urls: str, config: DataConfig, seed: int) -> None:
        try:
            if any(_most_urls(part) > MAX_URLS for part in urls.split("::")):
                raise ValueError(f"more than {MAX_URLS:,}")
            self.urls: list[str] = expand_urls(urls)
        except (AssertionError, ValueError, RecursionError) as error:
            raise UserError(f"{urls:.300}: not a list of tars: {error}") from None
        if not all(self.urls):
            raise UserError(f"{urls!r}: an empty URL; name tars, as in shards/train/shard-{{000000..000199}}.tar")
        self.name = urls
        self.config = config
        self.seed = seed

    @property
    def content_hash(self) -> str:
        """SHA-256 over the URLs, one a line: the identity of the data, as far as it can be known unread."""
        return hashlib.sha256("".join(f"{url}\n" for url in self.urls).encode()).hexdigest()

    def calibration(self, order: Order, count: int) -> Tensor:
        """(count, 3, S, S) in [-1, 1]: the first images of the first shards, from the start again after the last.

        Raises:
            UserError: as `micro_batches`.
        """
        loaded = _images(_samples(cycle(self.urls)), self.config)
        return images.normalise(torch.stack([each.image for each in islice(loaded, count)]))

    def micro_batches(self, order: Order, first: int, last: int) -> Generator[list[MicroBatch], None, None]:
        """The micro-batches of this rank for each of the steps first .. last - 1. Close it, or the workers live on.

        Raises:
            UserError: naming the URL, and the key of an image that cannot be read.
        """
        if first >= last:  # workers would start to download
            return
        config, workers, ranks = self.config, self.config.workers, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        spans = order.slices()
        # Ready, being handed over, and the two steps that training may hold.
        held = (PREFETCH + 1) * workers + 2 * len(spans)
        needed = ranks * held * order.micro_batch_size * 3 * config.image_size**2
        check_shared_memory(ranks * workers, needed)
        left_out: set[str] = set()
        draws = _Draws(self, order.rank, first)
        with loaded(draws, workers, PREFETCH, batch_size=order.micro_batch_size, collate_fn=collate) as batches:
            for step in range(first, last):
                flips = order.flips(step) & config.horizontal_flip
                micros = []
                for span in spans:
                    batch = or_raise(next(batches))
                    tolerate(batch.problems, left_out, config.max_bad_samples)
                    micros.append(MicroBatch(batch.images, span, flips[span]))
                yield micros


class _Draws(IterableDataset[Loaded | UserError]):
    """Endless images of shards drawn with replacement; an error instead of an image is the last."""

    def __init__(self, faces: StreamedFaces, rank: int, first: int) -> None:
        self.faces, self.rank, self.first = faces, rank, first

    def __iter__(self) -> Iterator[Loaded | UserError]:
        worker = get_worker_info()
        # WebDataset's own resampling takes no account of the first step: a run that resumes would see its start again.
        rng = random.Random(f"{self.faces.seed} {self.rank} {worker.id if worker else 0} {self.first}")
        samples = _samples(rng.choice(urls) for urls in repeat(self.faces.urls))
        try:
            yield from _images(webdataset.shuffle(SHUFFLE_BUFFER, rng=rng)(samples), self.faces.config)
        except UserError as error:
            yield error


class _Tar:
    """Bytes of a tar, and whether all of it was seen: a damaged header is its end, a cut between two members too.

    Whole tars end with zeros, and what is behind the last member is nothing else.
    """

    def __init__(self, source: Iterator[bytes]) -> None:
        self.source = source
        self.data = self.head = self.tail = b""
        self.position = 0

    def read(self, size: int) -> bytes:
        """What is left of the block at hand, or of the next one, up to `size` bytes."""
        if self.position == len(self.data):
            self.data, self.position = next(self.source, b""), 0
            self.head = self.head or self.data[:BLOCK]
            self.tail = (self.tail + self.data[-2 * BLOCK :])[-2 * BLOCK :]
        data = self.data[self.position : self.position + size]
        self.position += len(data)
        return data

    def ends(self) -> bool:
        """Read what is left, behind the last member. A compressed tar is always taken for whole."""
        empty = True
        for _ in range(100):  # blocks: no writer adds so many zeros
            if not (data := self.read(2**20)):
                return b"ustar" not in self.head or (empty and self.tail == bytes(2 * BLOCK))
            empty = empty and not data.strip(b"\0")
        return False


def _members(source: _Tar, url: str) -> Iterator[dict[str, Any]]:
    """Name and content of each file, as WebDataset's `group_by_keys` wants them."""
    with tarfile.open(fileobj=source, mode="r|*", tarinfo=BoundedHeader) as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members.clear()  # it would keep them all
            # A name of the form __x__ is WebDataset's own.
            check_size(member)  # an extended header may have changed it
            if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
                content = tar.extractfile(member)
                assert content is not None, "a regular file"
                yield {"fname": member.name, "data": content.read(), "__url__": url}


def _most_urls(pattern: str) -> int:
    """How many URLs the braces stand for at most, without writing them out: they are replaced by \0number\0."""
    counts: list[int] = []

    def product(text: str) -> int:
        return math.prod(counts[int(number)] for number in re.findall("\0(\\d+)\0", text))

    pattern = pattern.replace("\0", "")
    while group := re.search(r"\{([^{}]*)\}", pattern):
        numbers = re.match(r"(-?\d+)\.\.(-?\d+)", group[1])
        longest = abs(int(numbers[2]) - int(numbers[1])) + 1 if numbers else 58 * (".." in group[1])  # from A to z
        counts.append(max(longest, sum(product(item) for item in group[1].split(","))))
        pattern = f"{pattern[: group.start()]}\0{len(counts) - 1}\0{pattern[group.end() :]}"
    return product(pattern)


def _samples(urls: Iterator[str]) -> Iterator[Sample]:
    return chain.from_iterable(map(_samples_of, urls))


def _samples_of(url: str) -> Iterator[Sample]:
    """The samples of one tar, in its order. Raises UserError, also for a tar without any: drawing would never end."""
    empty = True
    with closing(blocks(url)) as source:
        tar = _Tar(source)
        try:
            for sample in group_by_keys(_members(tar, url)):
                name = f"{url}: sample {sample['__key__']}"
                found = [sample[extension] for extension in EXTENSIONS if extension in sample]
                if not found:
                    raise UserError(f"{name}: no .jpg, .jpeg, .png or .webp; leave it out of the tar")
                empty = False
                yield name, found[0]
            if not tar.ends():
                raise EOFError("it does not end as tars do")
        except UserError as error:
            raise UserError(error.args[0]) from None  # WebDataset adds to its arguments
        except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
            reason = error.args[0] if error.args else error
            raise UserError(
                f"{url}: cut short, damaged, or no WebDataset tar ({reason}); copy it there again"
            ) from None
        if empty:
            raise UserError(f"{url}: no samples in it; leave it out")


def _images(samples: Iterator[Sample], config: DataConfig) -> Iterator[Loaded]:
    """Those that can be read. Raises UserError for one that cannot, unless data.max_bad_samples allows for some."""
    problems: list[UserError] = []
    for sample in samples:
        try:
            image = _image(sample, config)
        except UserError as error:
            problems.append(error)
            if not config.max_bad_samples or len(problems) >= SHUFFLE_BUFFER:  # or there is no other
                raise problems[0] from None
        else:
            yield Loaded(image, tuple(map(str, problems)))
            problems.clear()


def _image(sample: Sample, config: DataConfig) -> Tensor:
    """(3, S, S) uint8."""
    name, data = sample
    return images.fit(images.decode(data, name), config.image_size, config.crop)
