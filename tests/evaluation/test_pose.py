"""Yaw from landmarks, and metrics by its difference."""

import math

import numpy as np
import pytest
import torch

from pipeline.evaluation.pose import BINS, bins_of, by_bin, pose, pose_statistics, yaw
from pipeline.evaluation.statistics import value

AHEAD = {"lefteye": [40, 50], "righteye": [80, 52], "nose": [60, 70]}


def test_yaw_is_the_nose_off_the_middle_of_the_eyes() -> None:
    assert yaw(AHEAD) == 0
    assert yaw(AHEAD | {"nose": [70, 70]}) == 0.25
    assert yaw(AHEAD | {"nose": [50, 70]}) == -0.25
    larger = {name: [3 * x + 7, 3 * y] for name, (x, y) in (AHEAD | {"nose": [70, 70]}).items()}
    assert yaw(larger) == 0.25


@pytest.mark.parametrize("wrong", [{}, {"nose": [1, 2]}, AHEAD | {"righteye": [40, 50]}, AHEAD | {"nose": []}])
def test_yaw_that_cannot_be_known(wrong: dict[str, list[float]]) -> None:
    assert math.isnan(yaw(wrong))


def test_bins_are_quarters_of_the_known_pairs() -> None:
    differences = np.array([0.4, 0.1, np.nan, 0.3, 0.2, 0.8, 0.5, 0.7, 0.6])
    bins, edges = bins_of(differences)
    assert bins.tolist() == [1, 0, -1, 1, 0, 3, 2, 3, 2]
    assert edges[0] == 0.1 and edges[-1] == 0.8 and len(edges) == BINS + 1
    assert set(bins_of(np.zeros(9))[0].tolist()) == {BINS - 1}  # all alike: no quarter is to be had


def test_means_within_bins_and_far_over_near() -> None:
    bins = np.array([0, 0, 1, 2, 3, 3, -1])
    rows = by_bin({"x": np.array([1.0, 3, 5, 6, 7, 9, 1000])}, bins)
    found = value(rows, pose_statistics)
    assert found["x"].tolist() == [2, 5, 6, 8] and found["x_far_over_near"] == 4
    ghosts = value({**rows, "ghost": rows["x"] - rows["inside"] * 2}, pose_statistics)
    assert ghosts["ghost"].tolist() == [0, 3, 4, 6] and ghosts["ghost_far_less_near"] == 6
    assert "ghost_far_over_near" not in ghosts


def test_the_section() -> None:
    differences = np.linspace(0, 1, 40)
    fused = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    tables = {"grows": {"x": 1 + differences}, "few": {"x": np.ones(10)}}
    section, rows = pose(differences, tables, fused, fused, seed=0)
    assert section["counts"] == [10] * 4 and set(rows) == {"pose.grows"}
    assert section["grows"]["x"] == sorted(section["grows"]["x"])
    assert section["grows"]["x_far_over_near"] == pytest.approx((1 + 35 / 39 - 0.5 / 39) / (1 + 4.5 / 39))
    low, high = section["grows"]["interval"]["x_far_over_near"]
    assert 1 < low < section["grows"]["x_far_over_near"] < high
    assert len(section["KID"]["KID"]) == 4

    unknown, nothing = pose(np.full(40, np.nan), tables, fused, None, seed=0)
    assert "0 pairs" in unknown["left_out"] and not nothing
