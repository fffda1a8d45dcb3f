"""Whether a picture between two faces is a face."""

import torch
from torch import Tensor

from pipeline.measures.distances import Point
from pipeline.measures.reconstruction import ratio
from pipeline.models import losses


def half_way(
    fused: Tensor, back_a: Tensor, back_b: Tensor, a: Tensor, b: Tensor, share: float = 0.5
) -> dict[str, Tensor]:
    """Whether C, all its lambdas being `share`, is a face or a double exposure, per pair.

    Args:
        fused, back_a, back_b, a, b: C, A', B', A and B, (B, 3, S, S) in [-1, 1].
        share: of A, between 0 and 1.

    Returns:
        (B,) each. ghost: 1 where C is the pixels' mean of A' and B', `share` of it A'; 0 or less where it is as far
            from that as the nearer of A' and B' is.
        sharpness: total variation (docs/method.md, eq. 8) of C over the same mean of those of A' and B'; 1: as sharp as
            they are, 0.5: what the pixels' mean of unrelated edges has.
        sharpness_photographs: the same over that of A and B, which does not gain where A' and B' are soft.
    """
    exposure = share * back_a + (1 - share) * back_b
    away = (fused - exposure).square().mean(dim=(1, 2, 3)).sqrt()
    apart = min(share, 1 - share) * (back_a - back_b).square().mean(dim=(1, 2, 3)).sqrt()
    edges, edges_a, edges_b, in_a, in_b = map(losses.total_variation, (fused, back_a, back_b, a, b))
    return {
        "ghost": 1 - ratio(away, apart),
        "sharpness": ratio(edges, share * edges_a + (1 - share) * edges_b),
        "sharpness_photographs": ratio(edges, share * in_a + (1 - share) * in_b),
    }


def detours(fused: Point, back_a: Point, back_b: Point) -> dict[str, Tensor]:
    """Distances of C to A' and B', per pair.

    Returns:
        (B,) each. to_a, to_b: the distances.
        detour: their sum over that of A' to B': 1 on the straight way, never less.
        balance: the shorter over the longer: 1 in the middle, 0 at an end.
    """
    to_a, to_b, apart = fused.distance(back_a), fused.distance(back_b), back_a.distance(back_b)
    longer = torch.maximum(to_a, to_b)
    return {
        "to_a": to_a,
        "to_b": to_b,
        "detour": torch.where(apart > 0, ratio(to_a + to_b, apart), 1.0),
        "balance": torch.where(longer > 0, ratio(torch.minimum(to_a, to_b), longer), 1.0),
    }
