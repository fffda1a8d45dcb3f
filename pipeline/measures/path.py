"""The way from A to B: whether the fused image leaves A steadily as lambda falls."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from pipeline.measures.distances import Point

Fuse = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`Bundle.fuse`: Z_A and Z_B, (B, C, h, w), and Lambda -> C, (B, 3, S, S). Lambda = 1 gives A' and 0 gives B'."""
AT_ONCE = 32
"""Images that a batch has at most, unless there are more pairs: the perceptual network is slow on single images."""
STEPS = 11
"""Lambdas from 1 to 0, both included."""


def fused_at(fuse: Fuse, z_a: Tensor, z_b: Tensor, lambdas: Tensor) -> Iterator[tuple[Tensor, int]]:
    """C at each of (K, N) Lambdas, a batch at a time.

    Yields:
        Images (k * B, 3, S, S), all pairs of one Lambda after those of the one before; and k.
    """
    pairs = len(z_a)
    for some in lambdas.split(max(1, AT_ONCE // pairs)):
        a, b = (z.repeat(len(some), 1, 1, 1) for z in (z_a, z_b))
        yield fuse(a, b, some.repeat_interleave(pairs, dim=0)), len(some)


def lines(elements: int) -> Tensor:
    """Lambdas of every line, (1 + N, STEPS, N): all elements together, then each alone with the others at A."""
    falling = torch.linspace(1, 0, STEPS)
    alone = torch.ones(elements, STEPS, elements)
    for element in range(elements):
        alone[element, :, element] = falling
    together = falling[:, None].expand(STEPS, elements)
    return torch.cat([together[None], alone])


@torch.no_grad()
def travelled(
    fuse: Fuse, measure: Callable[[Tensor], Point], images: Tensor, z_a: Tensor, z_b: Tensor, lambdas: Tensor
) -> dict[str, Tensor]:
    """Distances along lines from A to B.

    Args:
        measure: images (B, 3, S, S) in [-1, 1] -> points.
        images: A, (B, 3, S, S).
        z_a, z_b: (B, C, h, w).
        lambdas: (K, STEPS, N), each line beginning with ones.

    Returns:
        to_a, to_start: (B, K, STEPS), distances of C to A and to A'.
        steps: (B, K, STEPS - 1), distances of each C to the one before.
    """
    at_a, start = measure(images), measure(fuse(z_a, z_b, lambdas[0, 0]))
    to_a, to_start, steps = [], [], []
    for line in lambdas:
        points, pairs = [start], len(z_a)
        for shown, count in fused_at(fuse, z_a, z_b, line[1:]):
            together = measure(shown)
            points += [together[index * pairs : (index + 1) * pairs] for index in range(count)]
        to_a.append(torch.stack([point.distance(at_a) for point in points], dim=1))
        to_start.append(torch.stack([point.distance(start) for point in points], dim=1))
        steps.append(torch.stack([x.distance(y) for x, y in itertools.pairwise(points)], dim=1))
    return {"to_a": torch.stack(to_a, 1), "to_start": torch.stack(to_start, 1), "steps": torch.stack(steps, 1)}


def path_columns(distances: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a path is judged by, of what `travelled` gives for lines of `lines`.

    Returns:
        spearman_*: rank correlation of the distance to A with 1 - lambda; 1: each step leads away from A.
        spearman_start_*: the same of the distance to A'.
        largest_step_*: largest step over mean step; from 1, even, to STEPS - 1, all in one step.
        *_all: (B,), all elements together. *_elements: (B, N), each alone.
        curve: (B, 1 + N, STEPS), the distance to A', relative to that of the end of the first line, B'.
    """
    steps = distances["steps"]
    per_line = {
        "spearman": rank_correlation(distances["to_a"]),
        "spearman_start": rank_correlation(distances["to_start"]),
        "largest_step": _over(steps.amax(dim=-1), steps.mean(dim=-1), 1.0),
    }
    columns: dict[str, Tensor] = {}
    for name, values in per_line.items():
        columns |= {f"{name}_all": values[:, 0], f"{name}_elements": values[:, 1:]}
    to_start = distances["to_start"]
    return {**columns, "curve": _over(to_start, to_start[:, :1, -1:], 0.0)}


def rank_correlation(distances: Tensor) -> Tensor:
    """Spearman's, of distances (..., STEPS) with the number of the step: (...). 0 where the distance never changes."""
    columns = distances.reshape(-1, distances.shape[-1]).T.double().cpu()
    order = torch.arange(len(columns), dtype=columns.dtype)[:, None].expand_as(columns)
    if columns.shape[1] == 1:
        found = spearman_corrcoef(columns[:, 0], order[:, 0])[None]
    else:
        found = spearman_corrcoef(columns, order)
    return found.reshape(distances.shape[:-1])


def _over(values: Tensor, base: Tensor, otherwise: float) -> Tensor:
    """values / base, and `otherwise` where base is 0: nothing moves."""
    return torch.where(base > 0, values / base, otherwise)
