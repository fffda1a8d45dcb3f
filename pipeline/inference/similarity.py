"""Similarity transforms: a face brought to its place in a frame, and put back into its photograph.

Points are (x, y), centres of pixels at whole numbers. Here they are complex numbers x + iy: turning and scaling is then
one multiplication.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling, Transform
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.inference.landmarks import Points
from pipeline.models import regions
from pipeline.models.regions import Landmarks

_CENTRE = 0.5 + 0.5j
"""From centres of pixels at whole numbers to Pillow's coordinates, which count from the picture's corner."""


class Similarity(NamedTuple):
    """z -> factor * z + shift: turns and scales, then moves; never mirrors."""

    factor: complex
    shift: complex

    @property
    def inverse(self) -> "Similarity":
        return Similarity(1 / self.factor, -self.shift / self.factor)

    def points(self, landmarks: Landmarks) -> Points:
        """The five points, moved."""
        moved = {name: self.factor * complex(*landmarks[name]) + self.shift for name in regions.POINTS}
        return {name: (point.real, point.imag) for name, point in moved.items()}


def between(landmarks: Landmarks, target: Landmarks, name: object = "landmarks") -> Similarity:
    """The similarity that brings five points to their targets with the least squared distance (Umeyama, 1991).

    In the plane and without mirroring, his solution by singular values is this quotient of complex numbers.

    Args:
        name: where the landmarks come from, for messages.

    Raises:
        UserError: the points lie on one spot, or too far apart or away to be a face.
    """
    source, aim = (np.array([complex(*each[name]) for name in regions.POINTS]) for each in (landmarks, target))
    with np.errstate(over="ignore", invalid="ignore"):  # numbers out of all reason are refused below
        offsets = source - source.mean()
        spread = float((offsets * offsets.conj()).real.sum())
        factor = complex((offsets.conj() * (aim - aim.mean())).sum() / spread) if spread > 0 else 0j
        shift = complex(aim.mean() - factor * source.mean())
    if not (1e-4 < abs(factor) < 1e4 and abs(shift) < 1e9):
        raise UserError(f"{name}: these five landmarks are not those of a face in a photograph")
    return Similarity(factor, shift)


def centre_crop(width: int, height: int, size: int, crop: int | None) -> Similarity:
    """What `images.fit` does to the pixels of a photograph of `width` x `height`."""
    side = min(crop or height, height, width)
    corner = complex(round((width - side) / 2), round((height - side) / 2))
    return Similarity(complex(size / side), (_CENTRE - corner) * size / side - _CENTRE)


def warp(picture: Image.Image, move: Similarity, size: tuple[int, int]) -> Image.Image:
    """The picture of `size` (width, height) that `move` makes of another, antialiased.

    What lies outside of the picture repeats its edge.
    """
    shrink = min(1.0, abs(move.factor))  # Pillow antialiases where it resizes, not where it transforms
    small = (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))
    scales = small[0] / picture.width, small[1] / picture.height
    pixels = np.asarray(picture.resize(small, Resampling.BICUBIC) if small != picture.size else picture)
    back = move.inverse
    corners = _corners(back, size)
    xs, ys = [(x + 0.5) * scales[0] for x, _ in corners], [(y + 0.5) * scales[1] for _, y in corners]
    # Three pixels more: the bicubic kernel reaches two.
    columns = np.arange(math.floor(min(xs)) - 3, math.ceil(max(xs)) + 3)
    rows = np.arange(math.floor(min(ys)) - 3, math.ceil(max(ys)) + 3)
    region = pixels[rows.clip(0, small[1] - 1)][:, columns.clip(0, small[0] - 1)]
    origin = back.shift + _CENTRE - back.factor * _CENTRE  # of the picture's corner
    coefficients = (
        *(back.factor.real * scales[0], -back.factor.imag * scales[0], origin.real * scales[0] - columns[0]),
        *(back.factor.imag * scales[1], back.factor.real * scales[1], origin.imag * scales[1] - rows[0]),
    )
    return Image.fromarray(region).transform(size, Transform.AFFINE, coefficients, Resampling.BICUBIC)


def paste(photograph: Image.Image, face: Image.Image, move: Similarity, weight: Tensor) -> Image.Image:
    """A photograph with a face put where `move` took it from.

    Args:
        face: the picture of S x S in the frame; `weight`: (S, S) in [0, 1], how much of it is seen.

    Returns:
        A picture of the photograph's size. Pixels of weight 0 are the photograph's own, bit for bit.
    """
    back = move.inverse
    x, y = zip(*_corners(back, face.size), strict=True)
    left, top = (max(0, math.floor(min(values))) for values in (x, y))
    right, bottom = (min(side, math.ceil(max(v)) + 1) for side, v in zip(photograph.size, (x, y), strict=True))
    result = photograph.copy()
    if left < right and top < bottom:
        here = Similarity(back.factor, back.shift - complex(left, top))
        size = (right - left, bottom - top)
        mask = Image.fromarray((weight * 255).round().to(torch.uint8).cpu().numpy())
        result.paste(warp(face, here, size), (left, top), warp(mask, here, size))
    return result


def _corners(move: Similarity, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Where `move` brings the outer corners of a picture's four corner pixels."""
    corners = [complex(x, y) - _CENTRE for x in (0, size[0]) for y in (0, size[1])]
    moved = [move.factor * corner + move.shift for corner in corners]
    return [(corner.real, corner.imag) for corner in moved]
