"""Bootstrap intervals of means and of statistics of means."""

import json

import numpy as np
import pytest

from pipeline.evaluation.statistics import DRAWS, as_means, draws, interval, plain, resampling, summarised, value
from pipeline.measures.effects import Rows


def test_intervals_of_a_mean_hold_it_as_often_as_they_say() -> None:
    held = 0
    for trial in range(150):
        rows = {"x": np.random.default_rng(trial).normal(3, 2, size=60)}
        low, high = interval(draws(rows, as_means, seed=trial)["x"])
        held += bool(low <= 3 <= high)
    assert 0.90 <= held / 150 <= 0.98


def test_an_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = np.random.default_rng(1).normal(size=(400,))
    low, high = interval(draws({"x": values}, as_means, seed=0)["x"])
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high


def test_pairs_that_share_a_face_widen_the_interval() -> None:
    """A row is what belongs to its face and what belongs to the one before. Row by row it would be held in 80 %."""
    held = 0
    for trial in range(200):
        faces = np.random.default_rng(trial).normal(size=400)
        low, high = interval(draws({"x": faces + np.roll(faces, 1)}, as_means, seed=trial, pairs=True)["x"])
        held += bool(low <= 0 <= high)
    assert 0.88 <= held / 200 <= 0.98


def test_a_resampling_takes_as_many_rows_as_there_are() -> None:
    weights = resampling(7, seed=3)
    assert weights.shape == (DRAWS, 7)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights * 7, np.round(weights * 7))
    assert np.array_equal(weights, resampling(7, seed=3)) and not np.array_equal(weights, resampling(7, seed=4))


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 1), (27, 3), (64, 4), (1000, 10)])
def test_a_resampling_takes_blocks_of_neighbours(rows: int, length: int) -> None:
    weights = resampling(rows, seed=3, pairs=True)
    assert weights.shape == (DRAWS, rows)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    drawn = -(-rows // length) * length
    np.testing.assert_allclose(weights * drawn, np.round(weights * drawn), atol=1e-9)
    if rows > 1:
        together = np.mean((weights > 0) & (np.roll(weights, 1, axis=1) > 0)), np.mean(weights > 0) ** 2
        assert (together[0] > together[1] + 0.05) == (length > 1), "neighbours come together"
        assert not np.array_equal(weights, resampling(rows, seed=4, pairs=True))
    assert np.array_equal(weights, resampling(rows, seed=3, pairs=True))
    np.testing.assert_allclose(weights.mean(axis=0), 1 / rows, rtol=0.3)


def test_a_ratio_is_one_of_means_and_its_rows_stay_together() -> None:
    base = np.random.default_rng(0).uniform(1, 9, size=50)
    rows = {"over": 3 * base, "under": base}

    def ratio(means: Rows) -> Rows:
        return {"ratio": means["over"] / means["under"]}

    assert value(rows, ratio)["ratio"] == pytest.approx(3)
    assert interval(draws(rows, ratio, seed=0)["ratio"]) == pytest.approx([3, 3])


def test_what_the_json_holds() -> None:
    rows = {"one": np.array([1.0, 2, 3]), "each": np.ones((3, 2)), "map": np.zeros((3, 2, 2))}
    section = summarised(rows, as_means, seed=0)
    assert section["count"] == 3 and section["one"] == 2 and section["each"] == [1, 1]
    assert section["interval"]["each"] == [[1, 1], [1, 1]] and len(section["interval"]["one"]) == 2
    assert "map" in section and "map" not in section["interval"]
    json.dumps(section, allow_nan=False)


def test_what_is_undefined_is_none() -> None:
    def nothing(means: Rows) -> Rows:
        return {"nothing": means["x"] / 0 * 0}

    section = summarised({"x": np.zeros(4)}, nothing, seed=0)
    assert section["nothing"] is None and section["interval"]["nothing"] == [None, None]
    assert plain([[1.23456789, float("inf")], [2, float("nan")]]) == [[1.234568, None], [2, None]]
    single = summarised({"x": np.ones(1)}, as_means, seed=0)
    assert single["x"] == 1 and single["interval"]["x"] == [None, None]
    assert interval(np.array([np.nan, 1, 1, 1]))[0] == 1, "draws without a value are left out"
