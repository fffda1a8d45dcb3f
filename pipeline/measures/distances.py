"""How far images are apart: as the losses measure it, and in the manner of LPIPS."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.schema import CONTENT_LAYERS, LAYERS
from pipeline.models import losses
from pipeline.models.perceptual import PerceptualNetwork


def represented(features: list[Tensor]) -> list[Tensor]:
    """What the losses compare: the Gram matrix of a style layer, the features of a content layer.

    Args:
        features: one (B, C, H, W) per layer of `LAYERS`.
    """
    return [
        losses.wide(x) if layer in CONTENT_LAYERS else losses.gram_matrix(x)
        for layer, x in zip(LAYERS, features, strict=True)
    ]


def represented_distances(some: list[Tensor], others: list[Tensor]) -> Tensor:
    """Squared distance per image and layer, (B, L), as the losses measure it (docs/method.md, eq. 4 and 5).

    Args:
        some, others: of `represented`, one per layer of `LAYERS`.
    """
    pairs = zip(some, others, strict=True)
    return torch.stack([(x - y).square().flatten(1).mean(dim=1) for x, y in pairs], dim=1)


@dataclass(frozen=True)
class Point:
    """A batch of images in a space in which distances are Euclidean: they obey the triangle inequality."""

    parts: list[Tensor]
    """Each (..., C, H, W)."""

    def distance(self, other: "Point") -> Tensor:
        """(...): the root of `squared_distance`."""
        return self.squared_distance(other).sqrt()

    def squared_distance(self, other: "Point") -> Tensor:
        """(...): the mean over parts of the squares, summed over channels and averaged over rows and columns."""
        squares = [
            (x - y).square().sum(dim=-3).mean(dim=(-2, -1)) for x, y in zip(self.parts, other.parts, strict=True)
        ]
        return torch.stack(squares).mean(dim=0)

    def __getitem__(self, index: Any) -> "Point":
        return Point([part[index] for part in self.parts])


def perceptual_point(features: list[Tensor]) -> Point:
    """In LPIPS's manner: the channels at every row and column of every layer scaled to length 1, no learned weights.

    The squared distance of two points is from 0 to 2, since features after ReLU are not negative.
    """
    return Point([F.normalize(losses.wide(x), dim=-3, eps=1e-10) for x in features])


def pixel_point(images: Tensor) -> Point:
    """The images themselves, so that a distance is 3^(1/2) times the RMS difference of their pixels."""
    return Point([losses.wide(images)])


def named(perceptual: PerceptualNetwork) -> str:
    """What measured: the architecture and the name of its weights."""
    return f"{perceptual.config.arch}, {Path(perceptual.config.weights).name}"
