"""Probes of planted factors."""

import numpy as np
import pytest

from pipeline.evaluation.factors import PAINTED_ONLY, dci, factor_table, factors, probe


def test_the_probe_finds_the_planted_factors() -> None:
    random = np.random.default_rng(0)
    table = random.random((200, 2)) < 0.5
    parts = [random.normal(size=(200, 6)) for _ in range(3)]
    parts[1][:, 2] += 6 * table[:, 0]  # element 2 carries the first
    parts[2][:, :3] += 6 * table[:, 1:]  # element 3 carries the second
    found = factors(parts, ["smile", "hat"], table, seed=0)
    matrix = np.array(found["matrix"])
    assert found["carrier"] == {"smile": 2, "hat": 3}
    assert matrix[1, 0] > 0.95 and matrix[2, 1] > 0.95 and found["informativeness"] > 0.95
    assert matrix[0].max() < 0.35
    assert found["disentanglement"] > 0.5 and found["completeness"] > 0.5
    assert found == factors(parts, ["smile", "hat"], table, seed=0)


def test_a_probe_is_judged_on_faces_it_has_not_seen() -> None:
    """More dimensions than faces: on those it has seen it would be perfect."""
    random = np.random.default_rng(1)
    assert probe(random.normal(size=(80, 300)), random.random((80, 1)) < 0.5, seed=0)[0] < 0.4


def test_dci_of_known_importances() -> None:
    assert dci(np.eye(4)) == pytest.approx({"disentanglement": 1, "completeness": 1})
    assert dci(np.ones((3, 4))) == pytest.approx({"disentanglement": 0, "completeness": 0})
    one_carries_all = np.zeros((2, 3))
    one_carries_all[0] = 1
    assert dci(one_carries_all) == pytest.approx({"disentanglement": 0, "completeness": 1})
    assert dci(np.array([[1.0, 0], [0, 1], [1, 1]]))["disentanglement"] == pytest.approx(0.5)
    assert dci(np.zeros((2, 2))) == {"disentanglement": 0, "completeness": 0}


def test_factors_of_painted_faces_only() -> None:
    painted = [
        dict.fromkeys(PAINTED_ONLY, 1 if face % 2 else -1) | {"Rare": 1 if face < 5 else -1} for face in range(50)
    ]
    names, table = factor_table([{"attributes": each} for each in painted])
    assert names == sorted(PAINTED_ONLY) and table.shape == (50, 5) and table[:, 0].tolist() == [False, True] * 25
    assert factor_table([{"attributes": {"Smiling": 1}}] * 50)[0] == []
    assert factor_table([{}] * 50)[0] == []
