"""Tiles of faces, with or without text around them, and strips that lead from one face to another."""

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.inference.bundle import Bundle

GAP = 2
"""White pixels between tiles."""
FONT = 16
"""Height of labels in pixels, beside faces that are no larger than twelve times that."""
LEAST = 192
"""Pixels that the side of a face in a labelled picture has at least."""

Rows = Sequence[Sequence[Tensor | None]]
"""Images (3, S, S) in [-1, 1], None for an empty tile."""


def tile(rows: Rows) -> Image.Image:
    """Rows of images on white, each pixel as it is."""
    size, columns = _size(rows), max(len(row) for row in rows)
    canvas = torch.full((3, len(rows) * (size + GAP) - GAP, columns * (size + GAP) - GAP), 255, dtype=torch.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image is not None:
                top, left = y * (size + GAP), x * (size + GAP)
                canvas[:, top : top + size, left : left + size] = images.to_uint8(image).cpu()
    return images.to_pillow(canvas)


def labelled(
    rows: Rows,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    least: int = LEAST,
    headings: Mapping[int, Sequence[str]] | None = None,
) -> Image.Image:
    """Rows of images on white, with text above the columns and left of the rows.

    Args:
        columns, labels: of the columns and of the rows, from the first on; an empty one writes nothing. Text may have
            several lines. Where it is wider or higher than a face, the faces stand further apart.
        least: pixels that the side of a face has at least; smaller ones are enlarged by a whole number.
        headings: row, from 0 -> text above the images of that row; `columns` are those of the first.

    Raises:
        UserError: the picture would have more pixels than any that we read.
    """
    side = enlarged(_size(rows), least)
    font = ImageFont.load_default(max(FONT, side // 12))
    labels = [*labels, *[""] * (len(rows) - len(labels))]
    above = [(headings or {}).get(y, () if y else columns) for y in range(len(rows))]
    extents = [[_extent(text, font) for text in texts if text] for texts in above]
    width = max(side, *(wide + FONT for each in extents for wide, _ in each), 0) + GAP
    bands = [max((high + FONT for _, high in each), default=0) for each in extents]
    left = max((_extent(label, font)[0] + FONT for label in labels if label), default=0)
    heights = [max(side, _extent(label, font)[1]) + GAP for label in labels]
    canvas = _canvas(left + max(map(len, rows)) * width - GAP, sum(bands) + sum(heights) - GAP)
    draw, top, inner = ImageDraw.Draw(canvas), 0, (width - GAP - side) // 2
    for row, texts, band, label, height in zip(rows, above, bands, labels, heights, strict=True):
        for x, text in enumerate(texts):
            middle = left + x * width + inner + side // 2, top + band // 2
            draw.text(middle, text, "black", font, "mm", align="center")
        top += band
        draw.text((FONT // 2, top + (height - GAP) // 2), label, "black", font, "lm")
        for x, image in enumerate(row):
            if image is not None:
                canvas.paste(enlarge(image, side), (left + x * width + inner, top + (height - GAP - side) // 2))
        top += height
    return canvas


def enlarged(size: int, least: int) -> int:
    """The smallest whole multiple of `size` pixels that has `least` of them."""
    return size * max(1, -(-least // size))


def enlarge(image: Tensor, side: int) -> Image.Image:
    """(3, S, S) in [-1, 1] as a picture of side x side pixels."""
    return images.to_pillow(images.to_uint8(image)).resize((side, side), Image.Resampling.BICUBIC)


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


def falling_headings(count: int, last: str = "B'") -> list[str]:
    """What stands above the images of a strip: what the first and the last are, and lambda.

    Args:
        last: what lambda = 0 gives; nothing where it is no image that has a name.
    """
    texts = [f"lambda {round(value, 3):g}" for value in torch.linspace(1, 0, count).tolist()]
    texts[0] = f"A' ({texts[0]})"
    texts[-1] = f"{last} ({texts[-1]})" if last else texts[-1]
    return texts


def _size(rows: Rows) -> int:
    """The side of the images, in pixels."""
    return next(image.shape[-1] for row in rows for image in row if image is not None)


def _extent(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    """Width and height in pixels of a text of any number of lines."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=font)
    return math.ceil(right - left), math.ceil(bottom - top)


def _canvas(width: int, height: int) -> Image.Image:
    if width * height > images.MAX_PIXELS:
        raise UserError(
            f"a picture of {width:,} x {height:,} pixels: {images.MAX_PIXELS:,} are the most; "
            "enlarge the faces less (--scale), or draw fewer of them"
        )
    return Image.new("RGB", (width, height), "white")
