"""The Lambdas of training, drawn from a mixture of kinds.

To add a kind: a share in `LambdaMixture` (config/schema.py), a function from `Numbers` to Lambdas here, and its name at
the end of `KINDS`. If it needs random numbers of its own, `Numbers` gets a field that is drawn last, and only where the
kind has a share: Lambdas of the other kinds then stay the same, bit for bit, and old runs resume exactly.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.config.schema import LambdaMixture
from pipeline.models import regions

JITTER = 0.06
"""How far a part of the face is drawn from its usual position, at most, in shares of the picture's side."""


class Numbers(NamedTuple):
    """What is drawn for all images whatever their kind, so that the Lambda of image i depends on i alone."""

    coins: np.ndarray
    """(B, N) float32, 0 or 1."""
    uniform: np.ndarray
    """(B, N) float32 in [0, 1)."""
    chosen: np.ndarray
    """(B, 1), the index of one element."""
    areas: np.ndarray | None
    """(B, 1, h, w) float32, 1 inside an area; None where no image may be `spatial`."""


def endpoints(numbers: Numbers) -> np.ndarray:
    """(B, N): all ones or all zeros."""
    return np.broadcast_to(numbers.coins[:, :1], numbers.coins.shape)


def coin_flips(numbers: Numbers) -> np.ndarray:
    """(B, N): one or zero, for each element on its own."""
    return numbers.coins


def single(numbers: Numbers) -> np.ndarray:
    """(B, N): all ones or all zeros but for one element."""
    others = endpoints(numbers)
    return np.where(np.arange(others.shape[1]) == numbers.chosen, 1 - others, others)


def uniform(numbers: Numbers) -> np.ndarray:
    """(B, N): anything in [0, 1), for each element on its own."""
    return numbers.uniform


def spatial(numbers: Numbers) -> np.ndarray:
    """(B, N, h, w): ones inside of an area and zeros outside, or the reverse."""
    assert numbers.areas is not None, "drawn wherever the mixture has a spatial share"
    value = endpoints(numbers)[..., None, None]
    lambda_: np.ndarray = numbers.areas * value + (1 - numbers.areas) * (1 - value)
    return lambda_


def equal(numbers: Numbers) -> np.ndarray:
    """(B, N): all elements mixed alike, by anything from 0.15 to 0.85: what a strip shows between its ends."""
    return np.broadcast_to(0.15 + 0.7 * numbers.uniform[:, :1], numbers.uniform.shape)


KINDS: dict[str, Callable[[Numbers], np.ndarray]] = {
    "endpoints": endpoints,
    "coin_flips": coin_flips,
    "single": single,
    "uniform": uniform,
    "spatial": spatial,
    "equal": equal,
}
"""By the names of the shares in `LambdaMixture`. The order is part of the draw: a new kind goes last."""


def draw(
    random: np.random.Generator,
    count: int,
    elements: int,
    height: int,
    width: int,
    mixture: LambdaMixture,
    shared: bool,
) -> Tensor:
    """Training Lambdas, one per image, from the configured mixture.

    Args:
        height, width: of the latent.
        shared: give all elements of an image one value.

    Returns:
        (count, N), or (count, N, h, w) where the mixture has a spatial share; float32 in [0, 1].
    """
    shares = [getattr(mixture, name) for name in KINDS]
    kinds = random.choice(len(KINDS), size=count, p=np.array(shares) / sum(shares))  # p adds up to 1 in float64
    numbers = Numbers(
        coins=random.integers(0, 2, size=(count, elements)).astype(np.float32),
        uniform=random.random((count, elements), dtype=np.float32),
        chosen=random.integers(0, elements, size=count)[:, None],
        areas=_areas(random, count, height, width)[:, None] if mixture.spatial else None,
    )
    lambda_ = np.empty((count, elements, height, width) if mixture.spatial else (count, elements), np.float32)
    for index, (share, lambdas_of) in enumerate(zip(shares, KINDS.values(), strict=True)):
        if share:
            lambdas = lambdas_of(numbers)
            lambdas = lambdas if lambdas.ndim == lambda_.ndim else lambdas[..., None, None]
            lambda_[kinds == index] = lambdas[kinds == index]
    if shared:
        lambda_[:] = lambda_[:, :1]
    return torch.from_numpy(lambda_)


def _areas(random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """(count, h, w) float32: 1 in a rectangle, a half or a part of the face, as often each."""
    kinds = np.stack([kind(random, count, height, width) for kind in (_rectangles, _halves, _face_boxes)])
    areas: np.ndarray = kinds[random.integers(0, len(kinds), size=count), np.arange(count)]
    return areas


def _rectangles(random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """(count, h, w) float32: 1 inside a random rectangle of at least one cell."""

    def spans(length: int) -> np.ndarray:
        ends = np.sort(random.integers(0, length, size=(count, 2)), axis=1)  # first and last cell
        cells = np.arange(length)
        inside: np.ndarray = (cells >= ends[:, :1]) & (cells <= ends[:, 1:])
        return inside

    rectangles: np.ndarray = spans(height)[:, :, None] & spans(width)[:, None, :]
    return rectangles.astype(np.float32)


def _halves(random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """(count, h, w) float32: 1 in the left, right, upper or lower half; all 1 on a single cell."""
    rows, columns = (np.arange(length) < (length + 1) // 2 for length in (height, width))
    first: np.ndarray = np.where(random.integers(0, 2, size=(count, 1, 1)), rows[:, None], columns)
    other = random.integers(0, 2, size=(count, 1, 1)).astype(bool) & (height * width > 1)
    return (first ^ other).astype(np.float32)


def _face_boxes(random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """(count, h, w) float32: 1 in the cells that a part of the face touches, near its usual position in CelebA."""
    boxes = np.array(regions.celeba_boxes())
    left, top, right, bottom = boxes[random.integers(0, len(boxes), size=count)].T
    across, down = random.uniform(-JITTER, JITTER, size=(2, count))

    def touched(first: np.ndarray, last: np.ndarray, length: int) -> np.ndarray:
        cells = np.arange(length)
        inside: np.ndarray = (last[:, None] * length > cells) & (first[:, None] * length < cells + 1)
        return inside

    rows, columns = touched(top + down, bottom + down, height), touched(left + across, right + across, width)
    boxed: np.ndarray = rows[:, :, None] & columns[:, None, :]
    return boxed.astype(np.float32)
