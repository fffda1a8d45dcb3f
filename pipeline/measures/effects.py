"""The element-effect matrix: which latent element changes which perceptual layer."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.schema import CONTENT_LAYERS, LAYERS, STYLE_LAYERS
from pipeline.measures.distances import represented, represented_distances
from pipeline.measures.path import Fuse
from pipeline.models.autoencoder import rolled
from pipeline.models.perceptual import PerceptualNetwork

Array = NDArray[np.float64]
Rows = dict[str, Array]
"""What is measured per image or pair: name -> (n, ...), one value or one small array for each."""
DEAD = 0.05
"""An element none of whose effects is larger does nothing."""


@torch.no_grad()
def flips(fuse: Fuse, perceptual: PerceptualNetwork, z_a: Tensor, z_b: Tensor, elements: int) -> tuple[Tensor, Tensor]:
    """What flipping elements from A to B does to each layer, per pair.

    Args:
        z_a, z_b: (B, C, h, w).

    Returns:
        d(C_n, A') with element n alone flipped, (B, N, L), and d(B', A'), (B, L): squared distances as in the losses.
    """

    def represented_at(lambda_: Tensor) -> list[Tensor]:
        return represented(perceptual(fuse(z_a, z_b, lambda_)))

    at_a = represented_at(torch.ones(elements))
    whole = represented_distances(represented_at(torch.zeros(elements)), at_a)
    one_flipped = 1 - torch.eye(elements)
    moved = [represented_distances(represented_at(lambda_), at_a) for lambda_ in one_flipped]
    return torch.stack(moved, dim=1), whole


def effect_matrix(fuse: Fuse, perceptual: PerceptualNetwork, latents: Iterable[Tensor], elements: int) -> Tensor:
    """How far each element, flipped alone from A to B, moves each layer, relative to flipping all of them.

    Args:
        latents: batches Z_A, (B, C, h, w); Z_B is the batch rolled by one.

    Returns:
        (N, L) float32 on the CPU: root of the ratio of the mean squared distances d(C_n, A') / d(B', A').
    """
    moved = torch.zeros(elements, len(LAYERS), dtype=torch.float64)
    whole = torch.zeros(len(LAYERS), dtype=torch.float64)
    for z_a in latents:
        by_element, by_all = flips(fuse, perceptual, z_a, rolled(z_a), elements)
        moved += by_element.double().sum(dim=0).cpu()
        whole += by_all.double().sum(dim=0).cpu()
    return (moved / whole).sqrt().float()


def effect_statistics(means: Rows) -> Rows:
    """The effect matrix and what it amounts to.

    Args:
        means: `moved` (R, N, L) and `whole` (R, L), the means of what `flips` gives.

    Returns:
        `matrix` (R, N, L), `weakest` (R,) and, with one element per layer, the measures of `separation`.
    """
    squares = means["moved"] / means["whole"][..., None, :]
    matrix = np.sqrt(squares)
    found = {"matrix": matrix, "weakest": matrix.max(axis=-1).min(axis=-1)}
    return found | separation(squares)


def separation(squares: Array) -> Rows:
    """How well elements keep to the layers that they own.

    Args:
        squares: (..., N, L), how much of each layer's change an element causes; not negative.

    Returns:
        {} unless N = L. Else, with their values where elements do not differ (chance):
        own_shares (..., L): of a layer's change, summed over elements, the part of its owner; 1/N.
        own_share (...): their mean.
        block_style, block_content (...): of a style (content) layer's change the part of all style (content) elements.
        leakages (..., N): of an element's change, summed over layers, the part off its own layer; 1 - 1/L.
        leakage (...): their mean.
    """
    if squares.shape[-2] != squares.shape[-1]:
        return {}
    of_layer = squares / squares.sum(axis=-2, keepdims=True)
    of_element = squares / squares.sum(axis=-1, keepdims=True)
    own_shares = np.diagonal(of_layer, axis1=-2, axis2=-1)
    leakages = 1 - np.diagonal(of_element, axis1=-2, axis2=-1)
    blocks = {}
    for name, layers in (("style", STYLE_LAYERS), ("content", CONTENT_LAYERS)):
        indices = [LAYERS.index(layer) for layer in layers]
        blocks[f"block_{name}"] = of_layer[..., indices, :][..., indices].sum(axis=-2).mean(axis=-1)
    means = {"own_share": own_shares.mean(axis=-1), "leakage": leakages.mean(axis=-1)}
    return {"own_shares": own_shares, "leakages": leakages, **means, **blocks}


def dead_elements(matrix: Array) -> list[int]:
    """Elements, from 1, no effect of which is above DEAD: (N, L) -> numbers."""
    return [int(element) + 1 for element in np.flatnonzero(~(matrix.max(axis=-1) > DEAD))]
