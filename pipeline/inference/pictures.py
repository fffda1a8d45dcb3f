"""Tiles of faces, and strips that lead from one face to another."""

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.data import images
from pipeline.inference.bundle import Bundle

GAP = 2
"""White pixels between tiles."""
FONT = 16
"""Height of labels in pixels."""
LEAST = 128
"""Pixels that a face in a labelled picture has at least."""


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


def labelled(
    rows: Sequence[Sequence[Tensor | None]], columns: Sequence[str], labels: Sequence[str] = (), least: int = LEAST
) -> Image.Image:
    """`tile`, with a line of text above each column and left of each row.

    Args:
        columns, labels: of the columns and of the rows, from the first on; an empty one writes nothing.
        least: pixels that the side of a face has at least; smaller ones are enlarged by a whole number.
    """
    plain = tile(rows)
    size = next(image.shape[-1] for row in rows for image in row if image is not None)
    scale = max(1, -(-least // size))
    plain = plain.resize((plain.width * scale, plain.height * scale), Image.Resampling.BICUBIC)
    font = ImageFont.load_default(FONT)
    left = max((math.ceil(font.getlength(label)) + FONT for label in labels), default=0)
    canvas = Image.new("RGB", (left + plain.width, 2 * FONT + plain.height), "white")
    canvas.paste(plain, (left, 2 * FONT))
    draw, step = ImageDraw.Draw(canvas), (size + GAP) * scale
    for number, text in enumerate(columns):
        draw.text((left + number * step + size * scale // 2, FONT), text, fill="black", font=font, anchor="mm")
    for number, text in enumerate(labels):
        draw.text((FONT // 2, 2 * FONT + number * step + size * scale // 2), text, "black", font, anchor="lm")
    return canvas


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
