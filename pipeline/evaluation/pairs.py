"""The test faces in a seeded order, as images and as pairs."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loading.loader import FaceImages
from pipeline.evaluation.sharing import Alone, Ranks, share
from pipeline.inference import landmarks
from pipeline.inference.bundle import Bundle
from pipeline.models import regions

T = TypeVar("T")


class FacePairs:
    """Every face of a split once, or so many of them, in an order that depends on the seed and their number alone.

    Pair k has the k-th face as A and the one before it as B, around the end: every face is once A and once B.
    """

    def __init__(
        self,
        bundle: Bundle,
        dataset: FaceImages,
        most: int | None = None,
        trained: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        """With `trained`, of training images: unreadable ones are replaced as training does, never those of a test.

        `ranks` share what is measured; None: this process does all of it.
        """
        self.bundle, self.dataset, self.ranks = bundle, dataset, ranks or Alone()
        self.load = dataset.load_as_trained if trained else dataset.load
        self.batch_size = bundle.config.evaluation.batch_size
        order = np.random.default_rng(bundle.config.evaluation.seed).permutation(len(dataset))
        self.order: list[int] = order[:most].tolist()

    def __len__(self) -> int:
        return len(self.order)

    def images(self, positions: range) -> Tensor:
        """The faces at these positions of the order: (n, 3, S, S) in [-1, 1] on the device."""
        return self.load([self.order[each % len(self)] for each in positions]).to(self.bundle.device)

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

    def measured(self, count: int, name: str, measure: Callable[[range], T]) -> list[T]:
        """What `measure` gives for each batch of the first `count` positions, in their order; the ranks share them.

        Args:
            measure: gives simple values and tensors on the CPU.
            name: of what is measured, for the progress that is shown.
        """
        return share(self.ranks, measure, list(self.batches(count)), name, "faces", len)

    def pairs(self, positions: range) -> tuple[Tensor, Tensor]:
        """A and B of the pairs at these positions: (n, 3, S, S) each in [-1, 1] on the device."""
        images = self.images(range(positions.start - 1, positions.stop))
        return images[1:], images[:-1]

    def latent_pairs(self, positions: range) -> tuple[Tensor, Tensor, Tensor]:
        """The same pairs as A, Z_A and Z_B."""
        a, b = self.pairs(positions)
        z_a, z_b = self.bundle.encode(torch.cat([a, b])).chunk(2)
        return a, z_a, z_b
