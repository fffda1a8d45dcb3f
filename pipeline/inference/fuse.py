"""Pictures of fused faces: one, a strip from A to B, a grid of single elements, a moving one; whole, or in a region."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.inference import landmarks, pictures, similarity
from pipeline.inference.align import Framed
from pipeline.inference.bundle import Bundle, Lambda
from pipeline.inference.landmarks import Points
from pipeline.inference.similarity import Similarity
from pipeline.models import regions
from pipeline.models.elements import Element, element_labels, element_names

PRESETS = {"content-style": (0.0, 0.0, 0.0, 1.0, 1.0)}
"""Content-style: the content of A drawn in the style of B, the swap of S3-GAN."""
GRID_COLUMNS = 6
"""Images of each row of a grid."""
FRAMES = 25
"""Of a moving picture, from A to B: lambda falls by 0.04."""
BATCH = 32
"""Images of a strip that are generated at once."""
LABEL_WIDTH, LABEL_LINES = 16, 4
"""Characters of a line beside a row of a grid, and how many lines at most."""


class Region(NamedTuple):
    """Where B enters."""

    mask: Tensor
    """(S, S) in [0, 1], 1 where B enters."""
    feather: int | None = None
    """Lay C over A', with an edge that fades over so many pixels to either side; None: C as generated."""
    assumed: bool = False
    """Nothing says where A's face is: it was taken to be aligned as CelebA's are."""


def parse_lambda(text: str, elements: int | None = None, where: str = "--lambda") -> list[float] | float:
    """`0.5` for all elements, or `1,0.5,0,0,1`.

    Args:
        elements: how many the bundle has; None: how many numbers there are, and their range, is checked later.
        where: the text stands, for messages.

    Raises:
        UserError: if it is not made of numbers, or they are not what the bundle takes.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{where} {text}: expected numbers in [0, 1], for example 0.5 or 1,0.5,0,0,1") from None
    if elements is not None and len(values) not in (1, elements):
        raise UserError(f"{where}: {len(values)} values: this bundle takes 1 or {elements}")
    outside = [value for value in values if not 0 <= value <= 1]
    if elements is not None and outside:
        raise UserError(f"{where}: {outside[0]:.8g} is outside [0, 1]")
    return values if len(values) > 1 else values[0]


def preset(name: str, bundle: Bundle) -> list[float]:
    """The Lambda that a name stands for.

    Raises:
        UserError: if it is unknown, or the bundle's elements are not the layers'.
    """
    if name not in PRESETS:
        raise UserError(f"--preset {name}: unknown; known are: {', '.join(PRESETS)}")
    if bundle.config.fusion.reading != "layerwise":
        raise UserError(f"--preset {name}: needs a bundle of the layerwise reading, not {bundle.config.fusion.reading}")
    return list(PRESETS[name])


def named_region(
    bundle: Bundle,
    name: str,
    photograph: Path,
    given: Path | None = None,
    feather: int | None = None,
    found: Points | None = None,
) -> Region:
    """A named region of a photograph A.

    Args:
        given: file with A's landmarks; None: the one beside A, else CelebA's usual positions.
        found: the landmarks by which A was aligned, in pixels of the bundle's image: they come first.

    Raises:
        UserError: if the name is unknown, a file is wrong, or the region is outside of the picture.
    """
    if name not in regions.NAMES:
        raise UserError(f"--region {name}: unknown; known are: {', '.join(regions.NAMES)}")
    height, width = images.read(photograph).shape[1:]
    fit = width, height, bundle.image_size, bundle.config.data.crop
    known = found or landmarks.of_photograph(photograph, *fit, given)
    mask = regions.mask(name, known or landmarks.usual(*fit), bundle.image_size)
    if not mask.any():
        raise UserError(f"--region {name}: lies outside of the picture that is cut from {photograph}")
    return Region(mask.to(bundle.device), feather, assumed=known is None and name not in regions.HALVES)


def masked_region(
    bundle: Bundle, path: Path, photograph: Path, feather: int | None = None, move: Similarity | None = None
) -> Region:
    """The region that a grey picture gives, white where B enters.

    Args:
        path: of a picture of A's size, which is then aligned or cropped as A is; or a square of any size.
        move: what A was aligned by; None: it was cropped.

    Raises:
        UserError: if it cannot be read, is of another shape, or has no white in it.
    """
    mask, size = images.read(path), bundle.image_size
    height, width = images.read(photograph).shape[1:]
    if mask.shape[1:] == (height, width) and move is not None:
        mask = images.from_pillow(similarity.warp(images.to_pillow(mask), move, (size, size)))
    elif mask.shape[1:] == (height, width):
        mask = images.fit(mask, size, bundle.config.data.crop)
    elif mask.shape[1] == mask.shape[2]:
        mask = images.fit(mask, size)
    else:
        raise UserError(
            f"{path}: {mask.shape[2]} x {mask.shape[1]} pixels; "
            f"a mask is a square, or {width} x {height} as {photograph} is"
        )
    values = mask.float().mean(dim=0) / 255
    if not values.any():
        raise UserError(f"{path}: has no white in it; white is where the second photograph enters")
    return Region(values.to(bundle.device), feather)


def fuse_inside(bundle: Bundle, z_a: Tensor, z_b: Tensor, lambda_: Lambda, region: Region | None) -> Tensor:
    """C, fused in a region only if there is one: latents (B, C, h, w) twice -> (B, 3, S, S) in [-1, 1]."""
    if region is None:
        return bundle.fuse(z_a, z_b, lambda_)
    fused = bundle.fuse(z_a, z_b, lambda_, region.mask)
    if region.feather is None:
        return fused
    return regions.composite(fused, bundle.generate(z_a), regions.feathered(region.mask, region.feather))


def single(
    bundle: Bundle, a: Tensor, b: Tensor, lambda_: float | list[float], region: Region | None = None, least: int = 1
) -> Image:
    """C alone. `a`, `b`: (1, 3, S, S) in [-1, 1]; `least`: see `pictures.labelled`."""
    fused = fuse_inside(bundle, bundle.encode(a), bundle.encode(b), lambda_, region)[0]
    return pictures.enlarge(fused, pictures.enlarged(bundle.image_size, least))


def strips(
    bundle: Bundle,
    pairs: Sequence[tuple[Tensor, Tensor]],
    count: int,
    region: Region | None = None,
    columns: int | None = None,
    least: int = pictures.LEAST,
) -> Image:
    """The paper's figure of each pair: the inputs, and under them `count` fused images from A to B.

    Args:
        columns: fused images in a row, of which there may then be several; None: all in one.
        least: see `pictures.labelled`.
    """
    columns = min(columns or count, _checked(count))
    rows: list[Sequence[Tensor | None]] = []
    headings: dict[int, Sequence[str]] = {}
    texts = pictures.falling_headings(count, "B'" if region is None else "")
    for a, b in pairs:
        headings[len(rows)] = ["A", *[""] * (columns - 2), "B"]
        rows.append(_inputs(a, b, columns))
        fused = list(_moved(bundle, a, b, count, region))
        for start in range(0, count, columns):
            headings[len(rows)] = texts[start : start + columns]
            rows.append(fused[start : start + columns])
    return pictures.labelled(rows, least=least, headings=headings)


def grid(
    bundle: Bundle,
    a: Tensor,
    b: Tensor,
    count: int,
    elements: Sequence[Element] | None = None,
    least: int = pictures.LEAST,
) -> Image:
    """One row per element: it alone moves from A to B, the others stay at A. The inputs come first.

    At the end of each row stands where, and how much, its last image differs from A': the mean over the channels, black
    for no difference, white for the largest in the picture.

    Args:
        elements: what the rows are called; None: as the bundle's structure has them.
        least: see `pictures.labelled`.
    """
    rows: list[Sequence[Tensor | None]] = [_inputs(a, b, count)]
    z_a, z_b, back = bundle.encode(a), bundle.encode(b), bundle.generate(bundle.encode(a))[0]
    moved = []
    for element in range(bundle.elements):
        lambdas = torch.ones(count, bundle.elements)
        lambdas[:, element] = torch.linspace(1, 0, count)
        moved.append(bundle.fuse(z_a, z_b, lambdas))
    differences = [(each[-1] - back).abs().mean(dim=0, keepdim=True) for each in moved]
    largest = max(float(each.max()) for each in differences)
    for each, difference in zip(moved, differences, strict=True):
        rows.append([*each, (difference / max(largest, 1e-6) * 2 - 1).expand_as(back)])
    scale = f"difference from A'\nwhite: {largest * 127.5:.0f} of 255"
    headings = {1: [*pictures.falling_headings(count, ""), scale]}
    labels = element_labels(elements or element_names(bundle.config.model))
    lines = ["\n".join(textwrap.wrap(label, LABEL_WIDTH, max_lines=LABEL_LINES, placeholder="...")) for label in labels]
    return pictures.labelled(rows, ["A", *[""] * (count - 2), "B"], ["", *lines], least, headings)


def moving(
    bundle: Bundle, a: Tensor, b: Tensor, region: Region | None = None, least: int = pictures.LEAST
) -> list[Image]:
    """The frames of a picture that moves from A' to B': A, the fused face, B."""
    fused = _moved(bundle, a, b, FRAMES, region)
    texts = [f"lambda {value:.2f}" for value in torch.linspace(1, 0, FRAMES).tolist()]  # all of one width
    rows = [[a[0], each, b[0]] for each in fused]
    return [pictures.labelled([row], ["A", text, "B"], least=least) for row, text in zip(rows, texts, strict=True)]


def pasted(bundle: Bundle, fused: Image, a: Framed, region: Region | None = None) -> Image:
    """A's photograph with the fused face in it, with a soft edge: all of the face, or a region of it alone.

    Args:
        fused: C, S x S pixels; `a`: the photograph as it was fused.

    Returns:
        A picture of the photograph's size. Outside of the face and the region, its pixels are the photograph's own.
    """
    weight = regions.oval(a.points or bundle.frame, bundle.image_size)
    if region is not None:
        feather = bundle.image_size // 32 if region.feather is None else region.feather
        weight = weight * regions.feathered(region.mask.cpu(), feather)
    return similarity.paste(a.photograph, fused, a.move, weight)


def _moved(bundle: Bundle, a: Tensor, b: Tensor, count: int, region: Region | None) -> Tensor:
    """All lambdas falling from 1 to 0: (count, 3, S, S) in [-1, 1]."""
    z_a, z_b = bundle.encode(a), bundle.encode(b)
    lambdas = pictures.falling(count, bundle.elements).split(BATCH)
    return torch.cat([fuse_inside(bundle, z_a, z_b, each, region) for each in lambdas])


def _inputs(a: Tensor, b: Tensor, count: int) -> list[Tensor | None]:
    """The row above `count` fused images: A at its left end and B at its right."""
    return [a[0], *[None] * (_checked(count) - 2), b[0]]


def _checked(count: int) -> int:
    if count < 2:
        raise UserError(f"--strip/--columns {count}: at least 2 images lead from A to B")
    return count
