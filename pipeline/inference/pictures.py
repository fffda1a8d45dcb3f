"""Tiles of faces, and strips that lead from one face to another."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from pipeline.data import images
from pipeline.inference.bundle import Bundle

GAP = 2
"""White pixels between tiles."""


def tile(rows: Sequence[Sequence[Tensor | None]]) -> Image.Image:
    """Rows of images (3, S, S) in [-1, 1], None for an empty tile, on white."""
    first = next(image for row in rows for image in row if image is not None)
    size, columns = first.shape[-1], max(len(row) for row in rows)
    canvas = torch.full((3, len(rows) * (size + GAP) - GAP, columns * (size + GAP) - GAP), 255, dtype=torch.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image is not None:
                top, left = y * (size + GAP), x * (size + GAP)
                canvas[:, top : top + size, left : left + size] = images.to_uint8(image).cpu()
    return images.to_pillow(canvas)


@torch.no_grad()
def strip(bundle: Bundle, a: Tensor, b: Tensor, count: int) -> Tensor:
    """One face moving to another: `count` fused images, all lambdas falling from 1 to 0.

    Args:
        a, b: (3, S, S) in [-1, 1].

    Returns:
        (count, 3, S, S) in [-1, 1].
    """
    return bundle.fuse(a, b, falling(count, bundle.elements))


def falling(count: int, elements: int) -> Tensor:
    """Lambdas of a strip, equal for all elements: (count, N) from 1 to 0."""
    return torch.linspace(1, 0, count)[:, None].expand(count, elements)
