"""Latent elements, Lambda, and their mixing: METHOD (1).

Lambda has one value per element, and may vary over the rows and columns of the latent (a *spatial* Lambda).
Shapes: (N,), (B, N), (N, h, w) or (B, N, h, w), values in [0, 1].
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.schema import LambdaMixture
from pipeline.models import regions

JITTER = 0.06
"""How far a part of the face is drawn from its usual place, at most, in shares of the picture's side."""


def element_sizes(channels: int, elements: int) -> tuple[int, ...]:
    """Channels of each element: floor(C / N) each, the last takes the rest. (1024, 5) -> (204, 204, 204, 204, 208).

    Raises:
        ValueError: if there are fewer channels than elements, or no element.
    """
    if not 1 <= elements <= channels:
        raise ValueError(f"{channels} channels cannot be split into {elements} elements")
    size = channels // elements
    return (size,) * (elements - 1) + (channels - size * (elements - 1),)


def pyramid_sizes(channels: int) -> tuple[int, ...]:
    """Channels of the elements of a `pyramid`. (1024,) -> (64, 64, 64, 624, 208).

    Elements 1 to 3, a few numbers without a place, get a sixteenth each, and 5, the layout, a quarter of the rest.
    """
    style = channels // 16
    layout = (channels - 3 * style) // 4
    return (style, style, style, channels - 3 * style - layout, layout)


def pyramid_parts(sizes: tuple[int, ...], memory: bool) -> list[int]:
    """Channels of 1, 2, 3, of what 4 draws, what it remembers, what 5 draws, what it remembers.

    With a memory, 4 and 5 both end in a copy of the first eighth of each style: (64, 64, 64, 624, 208) -> (64, 64, 64,
    600, 24, 184, 24).
    """
    *styles, detail, layout = sizes
    remembered = len(styles) * math.ceil(styles[0] / 8) if memory else 0
    return [*styles, detail - remembered, remembered, layout - remembered, remembered]


def expand(lambda_: Tensor, channels: int, height: int, width: int, sizes: tuple[int, ...] | None = None) -> Tensor:
    """Lambda in the shape of the latent.

    Args:
        lambda_: (N,), (B, N), (N, h, w) or (B, N, h, w); spatial ones have the latent's height and width.
        sizes: channels of each element; `element_sizes` if None.

    Returns:
        (B, C, h, w); B is 1 where `lambda_` has no batch dimension.

    Raises:
        ValueError: for any other shape.
    """
    if lambda_.dim() in (1, 3):
        lambda_ = lambda_.unsqueeze(0)
    if lambda_.dim() == 2:
        lambda_ = lambda_[:, :, None, None].expand(-1, -1, height, width)
    if lambda_.dim() != 4 or lambda_.shape[2:] != (height, width):
        raise ValueError(f"Lambda of shape {tuple(lambda_.shape)} does not fit a latent of {height} x {width}")
    if sizes is None or lambda_.shape[1] == 1:
        sizes = element_sizes(channels, lambda_.shape[1])
    parts = zip(lambda_.split(1, dim=1), sizes, strict=True)  # sizes on a GPU would have to be sent there first
    return torch.cat([part.expand(-1, size, -1, -1) for part, size in parts], dim=1)  # (B, N, h, w) -> (B, C, h, w)


def mix(z_a: Tensor, z_b: Tensor, lambda_: Tensor, sizes: tuple[int, ...] | None = None) -> Tensor:
    """Z_C = Lambda o Z_A + (1 - Lambda) o Z_B, METHOD (1).

    Args:
        z_a, z_b: (B, C, h, w).
        lambda_: any of the four shapes of Lambda.
        sizes: channels of each element; `element_sizes` if None.

    Returns:
        (B, C, h, w).
    """
    channels, height, width = z_a.shape[1:]
    weight = expand(lambda_, channels, height, width, sizes)
    return weight * z_a + (1 - weight) * z_b


def mix_bands(z_a: Tensor, z_b: Tensor, lambda_: Tensor) -> Tensor:
    """(1) where the elements are spatial bands of the latent that add up to it, not groups of channels.

    Elements 1, 2 and 3 are the spatial mean of a third of the channels each, element 5 what a 2 x 2 grid of means adds
    to it, element 4 the rest. On a latent of 2 x 2, which has no rest, elements 4 and 5 are the deviation from the mean
    in half of the channels each. Equal lambdas give exactly what `mix` gives.

    Args:
        z_a, z_b: (B, C, h, w).
        lambda_: any of the four shapes of Lambda, N = 5, or N = 1: one for all.

    Returns:
        (B, C, h, w).
    """
    channels, height, width = z_a.shape[1:]
    lambda_ = lambda_.unsqueeze(0) if lambda_.dim() in (1, 3) else lambda_
    if lambda_.shape[1] == 1:
        return mix(z_a, z_b, lambda_)
    style, fine, coarse = lambda_.split((3, 1, 1), dim=1)
    difference = z_a - z_b
    mean = difference.mean(dim=(2, 3), keepdim=True)
    of_mean = expand(style, channels, height, width)
    if height > 2:
        rest = expand(fine, channels, height, width)
        layout = F.interpolate(F.adaptive_avg_pool2d(difference, 2), size=(height, width), mode="nearest-exact") - mean
        of_layout = expand(coarse, channels, height, width)
        banded = (of_layout - rest) * layout
    else:
        rest = expand(torch.cat([fine, coarse], dim=1), channels, height, width)
        banded = torch.zeros_like(difference)
    return rest * z_a + (1 - rest) * z_b + (banded + (of_mean - rest) * mean)


def layer_lambdas(lambda_: Tensor, owners: Tensor) -> Tensor:
    """The lambda that each perceptual layer follows.

    Args:
        lambda_: (B, N) or (B, N, h, w).
        owners: (N, L), columns adding up to 1: how the elements share each layer.

    Returns:
        (B, L) or (B, L, h, w).
    """
    return torch.einsum("bn...,nl->bl...", lambda_, owners)


def owner_matrix(reading: str, elements: int, layers: int, given: list[list[float]] | None = None) -> Tensor:
    """(N, L) float32: which element's lambda a perceptual layer follows (METHOD, readings of (4) and (5))."""
    if reading == "map":
        assert given is not None, "the configuration holds a map where the reading is `map`"
        return torch.tensor(given, dtype=torch.float32)
    if reading == "shared":  # the elements hold one value, so their mean is that value
        return torch.full((elements, layers), 1 / elements)
    assert elements == layers, "the configuration refuses layerwise unless there is one element per layer"
    return torch.eye(elements)


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

    All draws are made for all images whatever their kind, so that the Lambda of image i depends on i alone. Areas come
    last: a mixture without a spatial share skips them.

    Args:
        shared: give all elements of an image one value.

    Returns:
        (count, N), or (count, N, h, w) where the mixture has a spatial share; float32 in [0, 1].
    """
    kind = random.choice(5, size=count, p=_shares(mixture))
    coins = random.integers(0, 2, size=(count, elements)).astype(np.float32)
    uniform = random.random((count, elements), dtype=np.float32)
    chosen = random.integers(0, elements, size=count)

    endpoint = np.repeat(coins[:, :1], elements, axis=1)
    single = np.where(np.arange(elements) == chosen[:, None], 1 - endpoint, endpoint)
    flat = np.select([kind[:, None] == k for k in range(4)], [endpoint, coins, single, uniform], endpoint)
    if shared:
        flat = np.repeat(flat[:, :1], elements, axis=1)
    lambda_ = torch.from_numpy(flat.astype(np.float32))
    if mixture.spatial == 0:
        return lambda_
    inside = torch.from_numpy(_areas(random, count, height, width))[:, None]  # (count, 1, h, w)
    value = lambda_[:, :, None, None]  # an endpoint where the kind is spatial
    spatial = inside * value + (1 - inside) * (1 - value)
    return torch.where(torch.from_numpy(kind == 4)[:, None, None, None], spatial, value.expand_as(spatial))


def _shares(mixture: LambdaMixture) -> np.ndarray:
    shares = [mixture.endpoints, mixture.coin_flips, mixture.single, mixture.uniform, mixture.spatial]
    return np.array(shares) / sum(shares)  # exactly 1 in float64, as numpy wants it


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
    """(count, h, w) float32: 1 in the cells that a part of the face touches, near its usual place in CelebA."""
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
