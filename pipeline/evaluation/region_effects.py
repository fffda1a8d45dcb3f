"""Fusing a region only: how much changes inside of it, and how much leaks out."""

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.pairs import FacePairs
from pipeline.measures.effects import Rows
from pipeline.models import regions


def region_effect(changed: Tensor, base: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute change of the pixels inside and outside of a region, per image.

    Args:
        changed, base: C and A', (B, 3, S, S) in [-1, 1].
        inside: (B, S, S) or (S, S), 1 inside and 0 outside.

    Returns:
        (B,) twice; NaN where one of them has no pixel.
    """
    change = (changed - base).abs().mean(dim=1)
    inside = inside.to(change.dtype).expand_as(change)

    def mean(part: Tensor) -> Tensor:
        return (change * part).sum(dim=(1, 2)) / part.sum(dim=(1, 2))

    return mean(inside), mean(1 - inside)


@torch.no_grad()
def region_rows(faces: FacePairs, pairs: int) -> Rows:
    """Every named region of the first pairs, with all of B inside of it.

    Returns:
        inside, outside, reach: (n, R) for the R regions of `regions.NAMES`: the change of C against A', and inside
        that of B'; 0 where `seen` (n, R) is 0: the region lies outside of the picture, as hair in tight crops.
    """
    bundle = faces.bundle
    size = bundle.image_size

    def of_batch(positions: range) -> Tensor:
        _, z_a, z_b = faces.latent_pairs(positions)
        points = [faces.landmarks(position) for position in positions]
        base, other = bundle.generate(z_a), bundle.generate(z_b)
        by_region = []
        for name in regions.NAMES:
            masks = torch.stack([regions.mask(name, each, size) for each in points]).to(bundle.device)
            inside, outside = region_effect(bundle.fuse(z_a, z_b, 0, masks), base, masks)
            reach, _ = region_effect(other, base, masks)
            by_region.append(torch.stack([inside, outside, reach]))
        return torch.stack(by_region, dim=-1).cpu()  # (3, B, R)

    found = torch.cat(faces.measured(pairs, "regions", of_batch), dim=1).double().numpy()
    seen = np.isfinite(found[0] + found[1])
    rows = dict(zip(("inside", "outside", "reach"), np.where(seen, found, 0), strict=True))
    return {"seen": seen.astype(np.float64), **rows}


def region_statistics(means: Rows) -> Rows:
    """What regions are judged by, per region (R,) and as means over regions.

    Returns:
        seen: share of the pairs in which the region is seen.
        inside, outside: mean |C - A'| of those, pixels being in [-1, 1].
        leaks, leak: outside over inside; 0: nothing leaks, 1: the whole picture changes alike.
        reached: the change inside over that of B' inside; 1: as much as with all of B.
    """
    leaks = means["outside"] / means["inside"]
    known = np.isfinite(leaks)
    return {
        "seen": means["seen"],
        "inside": means["inside"] / means["seen"],
        "outside": means["outside"] / means["seen"],
        "leaks": leaks,
        "leak": np.where(known, leaks, 0).sum(axis=-1) / known.sum(axis=-1),
        "reached": means["inside"] / means["reach"],
    }
