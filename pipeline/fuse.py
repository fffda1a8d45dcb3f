"""Pictures of fused faces: one, a strip from A to B, a grid of single elements."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from pipeline import files, pictures
from pipeline.bundle import Bundle
from pipeline.errors import UserError

PRESETS = {"content-style": (0.0, 0.0, 0.0, 1.0, 1.0)}
"""Content-style: the content of A drawn in the style of B, the swap of S3-GAN."""


def parse_lambda(text: str) -> list[float] | float:
    """`0.5` for all elements, or `1,0.5,0,0,1`.

    Raises:
        UserError: if it is not made of numbers.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--lambda {text}: expected numbers in [0, 1], for example 0.5 or 1,0.5,0,0,1") from None
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


def single(bundle: Bundle, a: Tensor, b: Tensor, lambda_: float | list[float]) -> Image:
    """C alone, at the bundle's size. `a`, `b`: (1, 3, S, S) in [-1, 1]."""
    return pictures.tile([[bundle.fuse(a, b, lambda_)[0]]])


def strip(bundle: Bundle, a: Tensor, b: Tensor, count: int) -> Image:
    """The paper's figure: the inputs in the first row, `count` fused images from A to B in the second."""
    return strips(bundle, [(a, b)], count)


def strips(bundle: Bundle, pairs: Sequence[tuple[Tensor, Tensor]], count: int) -> Image:
    """The same for several pairs, one under the other."""
    _check_count(count)
    rows: list[list[Tensor | None]] = []
    for a, b in pairs:
        rows.append([a[0], *[None] * (count - 2), b[0]])
        rows.append(list(pictures.strip(bundle.model, a[0], b[0], count)))
    return pictures.tile(rows)


def grid(bundle: Bundle, a: Tensor, b: Tensor, count: int) -> Image:
    """One row per element: it alone moves from A to B, the others stay at A. The inputs come first."""
    _check_count(count)
    rows: list[list[Tensor | None]] = [[a[0], *[None] * (count - 2), b[0]]]
    for element in range(bundle.elements):
        lambdas = torch.ones(count, bundle.elements)
        lambdas[:, element] = torch.linspace(1, 0, count)
        z_a, z_b = (bundle.encode(image).expand(count, -1, -1, -1) for image in (a, b))
        rows.append(list(bundle.model.fuse_latents(z_a, z_b, lambdas.to(bundle.device))))
    return pictures.tile(rows)


def save(picture: Image, path: Path) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        with files.replacing(path) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _check_count(count: int) -> None:
    if count < 2:
        raise UserError(f"--strip/--grid {count}: at least 2 images lead from A to B")
