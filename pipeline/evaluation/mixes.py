"""Pictures between two faces: what a bundle fuses, and what needs no training, with which that is compared."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.tri import LinearTriInterpolator, Triangulation
from torch import Tensor
from torch.nn import functional

from pipeline.evaluation.pairs import FacePairs
from pipeline.inference.bundle import Bundle
from pipeline.inference.landmarks import Points
from pipeline.models import regions

FUSED = {"fused": 0.5, "fused_25": 0.25, "fused_75": 0.75}
"""C, all elements mixed alike: name -> lambda."""
BASELINES = ("mean_reconstructions", "mean_photographs", "morph")
"""Pixels' mean of A' and B', and of A and B; A and B warped to the mean of their landmarks and averaged."""


def fused_and_means(bundle: Bundle, z_a: Tensor, z_b: Tensor, back: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """C at every lambda of `FUSED`, and the mean of A' and B' (`back`); (B, 3, S, S) each in [-1, 1]."""
    found = {name: bundle.fuse(z_a, z_b, lambda_) for name, lambda_ in FUSED.items()}
    return found | {"mean_reconstructions": (back[0] + back[1]) / 2}


def of_photographs(a: Tensor, b: Tensor, points: Sequence[tuple[Points, Points]] | None) -> dict[str, Tensor]:
    """The baselines that need A and B alone; no morph without landmarks.

    Args:
        a, b: (B, 3, S, S) in [-1, 1].
        points: landmarks of A and of B of every pair, in pixels.
    """
    found = {"mean_photographs": (a + b) / 2}
    if points is not None:
        found["morph"] = torch.stack([morph(*pair) for pair in zip(a, b, *zip(*points, strict=True), strict=True)])
    return found


def single_flips(bundle: Bundle, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
    """C with each element alone from B: `element_1` .. `element_N`, (B, 3, S, S) each."""
    lambdas = 1 - torch.eye(bundle.elements, device=bundle.device)
    return {f"element_{n}": bundle.fuse(z_a, z_b, lambda_) for n, lambda_ in enumerate(lambdas, 1)}


def landmark_pairs(faces: FacePairs, positions: range) -> list[tuple[Points, Points]] | None:
    """Landmarks of A and B of these pairs; None where a face of the split has none."""
    if not faces.have_landmarks:
        return None
    points = [faces.landmarks(position) for position in range(positions.start - 1, positions.stop)]
    return list(zip(points[1:], points[:-1], strict=True))


def morph(a: Tensor, b: Tensor, points_a: Points, points_b: Points) -> Tensor:
    """Both warped piecewise affinely to the mean of their landmarks and of the picture's border, then averaged.

    Args:
        a, b: (3, S, S) in [-1, 1].
        points_a, points_b: the five landmarks in pixels.

    Returns:
        (3, S, S) in [-1, 1].
    """
    last = a.shape[-1] - 1
    border = [(x, y) for x in (0, last / 2, last) for y in (0, last / 2, last) if (x, y) != (last / 2, last / 2)]
    ends = [
        np.array([np.clip(points[name], 1, last - 1) for name in regions.POINTS]) for points in (points_a, points_b)
    ]
    corners_a, corners_b = (np.concatenate([end, border]) for end in ends)
    triangles = Triangulation(*((corners_a + corners_b) / 2).T)
    rows, columns = np.mgrid[: last + 1, : last + 1]
    warped = []
    for image, corners in ((a, corners_a), (b, corners_b)):
        from_where = [LinearTriInterpolator(triangles, values)(columns, rows) for values in corners.T]  # x, then y
        grid = torch.from_numpy(np.ma.getdata(from_where)).to(image).nan_to_num()
        grid = (2 * grid + 1) / (last + 1) - 1  # as grid_sample counts
        warped.append(functional.grid_sample(image[None], grid.permute(1, 2, 0)[None], "bilinear", "border", False)[0])
    return (warped[0] + warped[1]) / 2
