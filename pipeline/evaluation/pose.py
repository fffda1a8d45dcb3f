"""Whether faces that look different ways fuse as well as those that look the same way."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.realism import kernel
from pipeline.evaluation.statistics import count as rows_of
from pipeline.evaluation.statistics import plain, summarised
from pipeline.measures.effects import Array, Rows

BINS = 4
"""Quarters of the pairs by their difference of yaw: the first is near, the last is far."""
FEWEST_IN_BIN = 2


def yaw(landmarks: Mapping[str, Sequence[float]]) -> float:
    """How far a face is turned: (nose - middle of the eyes) / distance of the eyes, across; 0 ahead, > 0 to the right.

    NaN where a landmark is missing, or the eyes coincide or change sides.
    """
    try:
        left, right, nose = (float(landmarks[name][0]) for name in ("lefteye", "righteye", "nose"))
    except (KeyError, IndexError, TypeError, ValueError):
        return float("nan")
    return (nose - (left + right) / 2) / (right - left) if right > left else float("nan")


def bins_of(differences: Array) -> tuple[NDArray[np.int64], Array]:
    """Quarters of equal count: the bin of each pair (-1 where the difference is unknown), and the BINS + 1 edges."""
    known = np.isfinite(differences)
    edges = np.quantile(differences[known], np.linspace(0, 1, BINS + 1))
    bins = np.searchsorted(edges[1:-1], differences, side="right")
    return np.where(known, bins, -1), edges


def by_bin(rows: Rows, bins: NDArray[np.int64]) -> Rows:
    """Rows (n,) spread over bins, so that means over bins are ratios of means over rows: (n, BINS) each."""
    inside = (bins[:, None] == np.arange(BINS)).astype(np.float64)
    return {"inside": inside, **{name: values[:, None] * inside for name, values in rows.items()}}


def pose_statistics(means: Rows) -> Rows:
    """Means within each bin and, of every metric, far over near; of `ghost`, which may be 0 or less, far less near.

    Args:
        means: (R, BINS) each, of what `by_bin` gives.
    """
    inside = means["inside"]
    found: Rows = {}
    for name, values in means.items():
        if name != "inside":
            found[name] = values / inside
            near, far = found[name][..., 0], found[name][..., -1]
            found |= {f"{name}_far_less_near": far - near} if name == "ghost" else {f"{name}_far_over_near": far / near}
    return found


def pose(
    differences: Array, tables: Mapping[str, Rows], fused: Tensor, train: Tensor | None, seed: int
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Every metric of pairs by their difference of yaw.

    Args:
        differences: (n,) |yaw of A - yaw of B|, NaN where unknown.
        tables: name -> rows of the first of these pairs.
        fused, train: features (n, D) of the first pairs' C and of training images, for a kernel distance of each bin.

    Returns:
        The section, or {"left_out": why} where too few differences are known; and the rows of `pose.<table>`.
    """
    known = int(np.isfinite(differences).sum())
    if known < BINS * FEWEST_IN_BIN:
        return {"left_out": f"eyes and nose are known of {known} pairs; {BINS * FEWEST_IN_BIN} are needed"}, {}
    bins, edges = bins_of(differences)
    counts = [int((bins == number).sum()) for number in range(BINS)]
    section: dict[str, Any] = {"count": known, "counts": counts, "edges": plain(edges)}
    rows: dict[str, Rows] = {}
    for name, table in tables.items():
        binned = by_bin(table, bins[: rows_of(table)])
        if binned["inside"].sum(axis=0).min() >= FEWEST_IN_BIN:
            section[name] = summarised(binned, pose_statistics, seed, pairs=True)
            rows[f"pose.{name}"] = binned
    if train is not None:
        of_bins = [fused[torch.from_numpy(bins[: len(fused)] == number)] for number in range(BINS)]
        distances = np.array([kernel(train, features, seed)[0] for features in of_bins])
        section["KID"] = {"KID": plain(distances), "KID_far_less_near": plain(distances[-1] - distances[0])}
    return section, rows
