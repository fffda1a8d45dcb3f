"""Exact Shapley values of the elements from all corners of Lambda: what each contributes, whatever the others do."""

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.measures.distances import represented, represented_distances
from pipeline.measures.effects import Rows
from pipeline.measures.path import Fuse, fused_at
from pipeline.models.perceptual import PerceptualNetwork

MOST_ELEMENTS = 8
"""Beyond that the 2^N corners take too long, and the values are left out."""


@torch.no_grad()
def corner_distances(fuse: Fuse, perceptual: PerceptualNetwork, z_a: Tensor, z_b: Tensor, elements: int) -> Tensor:
    """d(C, A') at every corner of Lambda, as `effects.flips` measures it.

    Args:
        z_a, z_b: (B, C, h, w).

    Returns:
        (B, 2^N, L); bit n of a corner's number says that element n + 1 is at B.
    """
    at_a = represented(perceptual(fuse(z_a, z_b, torch.ones(elements))))
    at_b = [[corner >> element & 1 for element in range(elements)] for corner in range(1, 2**elements)]
    distances = [torch.zeros(1, len(z_a), len(at_a), device=z_a.device)]  # corner 0 is A'
    for images, count in fused_at(fuse, z_a, z_b, 1 - torch.tensor(at_b, dtype=z_a.dtype)):
        base = [x.repeat(count, *(1,) * (x.dim() - 1)) for x in at_a]
        found = represented_distances(represented(perceptual(images)), base)
        distances.append(found.reshape(count, len(z_a), len(at_a)))
    return torch.cat(distances).transpose(0, 1)  # (2^N, B, L) -> (B, 2^N, L)


def shapley_values(worth: Tensor) -> Tensor:
    """The mean of what a player adds to a coalition over all orders in which the players may join.

    Args:
        worth: (B, 2^N, ...), of every coalition; bit n of its number says that player n is in it.

    Returns:
        (B, N, ...) adding up over the players to the worth of all less that of none.
    """
    players = worth.shape[1].bit_length() - 1
    values = []
    for player in range(players):
        without = torch.tensor([each for each in range(2**players) if not each >> player & 1], device=worth.device)
        sizes = [each.bit_count() for each in without.tolist()]
        orders = [math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players) for size in sizes]
        added = worth[:, without | 1 << player] - worth[:, without]
        values.append(torch.tensordot(added, torch.tensor(orders, dtype=worth.dtype, device=worth.device), ([1], [0])))
    return torch.stack(values, dim=1)


def shapley_statistics(means: Rows) -> Rows:
    """Each element's part of each layer's change.

    Args:
        means: `values` (R, N, L), `whole` (R, L).

    Returns:
        `matrix` (R, N, L) whose columns add up to 1 and, with one element per layer, `own_shares` (R, L) and
        `own_share`: its diagonal and the mean of that. Chance is 1/N. A part can be negative.
    """
    matrix = means["values"] / means["whole"][..., None, :]
    if matrix.shape[-2] != matrix.shape[-1]:
        return {"matrix": matrix}
    own_shares = np.diagonal(matrix, axis1=-2, axis2=-1)
    return {"matrix": matrix, "own_shares": own_shares, "own_share": own_shares.mean(axis=-1)}
