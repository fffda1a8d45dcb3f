"""Latent elements, Lambda, and their mixing (docs/method.md, eq. 1).

Lambda has one value per element, and may vary over the rows and columns of the latent (a *spatial* Lambda).
Shapes: (N,), (B, N), (N, h, w) or (B, N, h, w), values in [0, 1].
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def element_sizes(channels: int, elements: int) -> tuple[int, ...]:
    """Channels of each element: floor(C / N) each, the last takes the rest. (1024, 5) -> (204, 204, 204, 204, 208).

    Raises:
        ValueError: if there are fewer channels than elements, or no element.
    """
    if not 1 <= elements <= channels:
        raise ValueError(f"{channels} channels cannot be split into {elements} elements")
    size = channels // elements
    return (size,) * (elements - 1) + (channels - size * (elements - 1),)


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
    """Z_C = Lambda o Z_A + (1 - Lambda) o Z_B (docs/method.md, eq. 1).

    Args:
        z_a, z_b: (B, C, h, w).
        lambda_: any of the four shapes of Lambda.
        sizes: channels of each element; `element_sizes` if None.

    Returns:
        (B, C, h, w).
    """
    channels, height, width = z_a.shape[1:]
    weight = expand(lambda_, channels, height, width, sizes)
    return weighted_sum((z_a, z_b), (weight, 1 - weight))


def blend(latents: Sequence[Tensor], weights: Tensor, sizes: tuple[int, ...] | None = None) -> Tensor:
    """Sum over k of W_k o Z_k: eq. 1 for K faces; of two, with W = Lambda and 1 - Lambda, it is `mix` of equal bits.

    Args:
        latents: K latents, (B, C, h, w) each; B may be 1.
        weights: (K, N), columns adding up to 1.
        sizes: channels of each element; `element_sizes` if None.

    Returns:
        (B, C, h, w).
    """
    channels, height, width = latents[0].shape[1:]
    return weighted_sum(latents, [expand(each, channels, height, width, sizes) for each in weights])


def weighted_sum(latents: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Sum of weight times latent, in the order given: (B, C, h, w), as often as there are latents -> (B, C, h, w)."""
    total = weights[0] * latents[0]
    for weight, z in zip(weights[1:], latents[1:], strict=True):
        total = total + weight * z
    return total


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
    """(N, L) float32: which element's lambda a perceptual layer follows, by `fusion.reading`."""
    if reading == "map":
        assert given is not None, "the configuration holds a map where the reading is `map`"
        return torch.tensor(given, dtype=torch.float32)
    if reading == "shared":  # the elements hold one value, so their mean is that value
        return torch.full((elements, layers), 1 / elements)
    assert elements == layers, "the configuration refuses layerwise unless there is one element per layer"
    return torch.eye(elements)
