"""The test faces in a seeded order, as images and as pairs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loading.loader import FaceImages
from pipeline.inference.bundle import Bundle


class Faces:
    """Every face of a split once, in an order that depends on the seed and their number alone.

    Pair k is made of the k-th face as A and the one before it as B, around the end: every face is once A and once B.
    """

    def __init__(self, bundle: Bundle, dataset: FaceImages) -> None:
        self.bundle, self.dataset = bundle, dataset
        self.batch_size = bundle.config.evaluation.batch_size
        self.order: list[int] = np.random.default_rng(bundle.config.evaluation.seed).permutation(len(dataset)).tolist()

    def __len__(self) -> int:
        return len(self.order)

    def place_before(self, place: int) -> int:
        """Where in the order the partner of the face at `place` is."""
        return (place - 1) % len(self)

    def images(self, places: range) -> Tensor:
        """The faces at these places of the order: (n, 3, S, S) in [-1, 1] on the device."""
        return self.dataset.load([self.order[place % len(self)] for place in places]).to(self.bundle.device)

    def pairs(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `count` pairs, each batch as A and B: (n, 3, S, S) in [-1, 1] on the device."""
        for places in self.batches(count):
            images = self.images(range(places.start - 1, places.stop))
            yield images[1:], images[:-1]

    def latent_pairs(self, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The first `count` pairs as A, Z_A and Z_B."""
        for a, b in self.pairs(count):
            z_a, z_b = self.bundle.encode(torch.cat([a, b])).chunk(2)
            yield a, z_a, z_b

    def batches(self, count: int) -> Iterator[range]:
        """The first `count` places, in ranges of at most a batch."""
        for start in range(0, count, self.batch_size):
            yield range(start, min(start + self.batch_size, count))

    def metadata(self, place: int) -> dict[str, Any]:
        """What the shards say of the face at a place of the order."""
        return self.dataset.reader.metadata(self.order[place])
