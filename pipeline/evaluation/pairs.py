"""The test faces in a seeded order, as images and as pairs."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loading.loader import FaceImages
from pipeline.inference import landmarks
from pipeline.inference.bundle import Bundle
from pipeline.models import regions


class FacePairs:
    """Every face of a split once, or so many of them, in an order that depends on the seed and their number alone.

    Pair k has the k-th face as A and the one before it as B, around the end: every face is once A and once B.
    """

    def __init__(self, bundle: Bundle, dataset: FaceImages, most: int | None = None) -> None:
        self.bundle, self.dataset = bundle, dataset
        self.batch_size = bundle.config.evaluation.batch_size
        order = np.random.default_rng(bundle.config.evaluation.seed).permutation(len(dataset))
        self.order: list[int] = order[:most].tolist()

    def __len__(self) -> int:
        return len(self.order)

    def images(self, positions: range) -> Tensor:
        """The faces at these positions of the order: (n, 3, S, S) in [-1, 1] on the device."""
        return self.dataset.load([self.order[each % len(self)] for each in positions]).to(self.bundle.device)

    def metadata(self, position: int) -> dict[str, Any]:
        """What the shards say of the face at a position of the order."""
        return self.dataset.reader.metadata(self.order[position % len(self)])

    @cached_property
    def have_landmarks(self) -> bool:
        """Whether the shards have all five of every face."""
        points = set(regions.POINTS)
        return all(points <= set(self.metadata(each).get("landmarks") or ()) for each in range(len(self)))

    def landmarks(self, position: int) -> landmarks.Points:
        """In pixels of the picture that models see; CelebA's usual ones where the shards have none."""
        return landmarks.of_sample(self.metadata(position), self.bundle.image_size, self.bundle.config.data.crop)

    def batches(self, count: int) -> Iterator[range]:
        """The first `count` positions, in ranges of at most a batch."""
        for start in range(0, count, self.batch_size):
            yield range(start, min(start + self.batch_size, count))

    def pairs(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `count` pairs, each batch as A and B: (n, 3, S, S) in [-1, 1] on the device."""
        for positions in self.batches(count):
            images = self.images(range(positions.start - 1, positions.stop))
            yield images[1:], images[:-1]

    def latent_pairs(self, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The first `count` pairs as A, Z_A and Z_B."""
        for a, b in self.pairs(count):
            z_a, z_b = self.bundle.encode(torch.cat([a, b])).chunk(2)
            yield a, z_a, z_b
