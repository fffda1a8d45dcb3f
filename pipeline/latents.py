"""Latent elements, Lambda, and their mixing: METHOD (1).

Lambda has one value per element, and may vary over the rows and columns of the latent (a *spatial* Lambda).
Shapes: (N,), (B, N), (N, h, w) or (B, N, h, w), values in [0, 1].
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.config import LambdaMixture


def element_sizes(channels: int, elements: int) -> tuple[int, ...]:
    """Channels of each element: floor(C / N) each, the last takes the rest. (1024, 5) -> (204, 204, 204, 204, 208).

    Raises:
        ValueError: if there are fewer channels than elements, or no element.
    """
    if not 1 <= elements <= channels:
        raise ValueError(f"{channels} channels cannot be split into {elements} elements")
    size = channels // elements
    return (size,) * (elements - 1) + (channels - size * (elements - 1),)


def expand(lambda_: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Lambda in the shape of the latent.

    Args:
        lambda_: (N,), (B, N), (N, h, w) or (B, N, h, w); spatial ones have the latent's height and width.

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
    sizes = torch.tensor(element_sizes(channels, lambda_.shape[1]), device=lambda_.device)
    return lambda_.repeat_interleave(sizes, dim=1, output_size=channels)  # (B, N, h, w) -> (B, C, h, w)


def mix(z_a: Tensor, z_b: Tensor, lambda_: Tensor) -> Tensor:
    """Z_C = Lambda o Z_A + (1 - Lambda) o Z_B, METHOD (1).

    Args:
        z_a, z_b: (B, C, h, w).
        lambda_: any of the four shapes of Lambda.

    Returns:
        (B, C, h, w).
    """
    weight = expand(lambda_, *z_a.shape[1:])
    return weight * z_a + (1 - weight) * z_b


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

    All draws are made for all images whatever their kind, so that the Lambda of image i depends on i alone.

    Args:
        shared: give all elements of an image one value.

    Returns:
        (count, N), or (count, N, h, w) where the mixture has a spatial share; float32 in [0, 1].
    """
    kind = random.choice(5, size=count, p=_shares(mixture))
    coins = random.integers(0, 2, size=(count, elements)).astype(np.float32)
    uniform = random.random((count, elements), dtype=np.float32)
    chosen = random.integers(0, elements, size=count)
    rectangles = _rectangles(random, count, height, width)  # (count, h, w)

    endpoint = np.repeat(coins[:, :1], elements, axis=1)
    single = np.where(np.arange(elements) == chosen[:, None], 1 - endpoint, endpoint)
    flat = np.select([kind[:, None] == k for k in range(4)], [endpoint, coins, single, uniform], endpoint)
    if shared:
        flat = np.repeat(flat[:, :1], elements, axis=1)
    lambda_ = torch.from_numpy(flat.astype(np.float32))
    if mixture.spatial == 0:
        return lambda_
    inside = torch.from_numpy(rectangles)[:, None]  # (count, 1, h, w)
    value = lambda_[:, :, None, None]  # an endpoint where the kind is spatial
    spatial = inside * value + (1 - inside) * (1 - value)
    return torch.where(torch.from_numpy(kind == 4)[:, None, None, None], spatial, value.expand_as(spatial))


def _shares(mixture: LambdaMixture) -> np.ndarray:
    shares = [mixture.endpoints, mixture.coin_flips, mixture.single, mixture.uniform, mixture.spatial]
    return np.array(shares) / sum(shares)  # exactly 1 in float64, as numpy wants it


def _rectangles(random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """(count, h, w) float32: 1 inside a random rectangle of at least one cell."""

    def spans(length: int) -> np.ndarray:
        ends = np.sort(random.integers(0, length, size=(count, 2)), axis=1)  # first and last cell
        cells = np.arange(length)
        inside: np.ndarray = (cells >= ends[:, :1]) & (cells <= ends[:, 1:])
        return inside

    rectangles: np.ndarray = spans(height)[:, :, None] & spans(width)[:, None, :]
    return rectangles.astype(np.float32)
