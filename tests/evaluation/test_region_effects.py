"""Changes inside and outside of regions."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.region_effects import region_effect, region_statistics


def test_change_inside_and_outside() -> None:
    base = torch.zeros(2, 3, 4, 4)
    mask = torch.zeros(2, 4, 4)
    mask[0, :, :2], mask[1, 0, 0] = 1, 1
    changed = base.clone()
    changed[0, :, :, :2], changed[0, :, :, 2:] = -0.8, 0.2
    changed[1, 0, 0, 0] = 0.9  # in one channel of three
    inside, outside = region_effect(changed, base, mask)
    assert inside.tolist() == pytest.approx([0.8, 0.3]) and outside.tolist() == pytest.approx([0.2, 0])
    inside, _ = region_effect(changed, base, mask[0])
    assert inside[0].item() == pytest.approx(0.8)
    everywhere, nowhere = region_effect(changed, base, torch.ones(4, 4))
    assert torch.isfinite(everywhere).all() and torch.isnan(nowhere).all()


def test_leak_and_reach_are_ratios_of_means() -> None:
    rows = {"inside": [[0.4, 0.2, 0]], "outside": [[0.1, 0.1, 0]], "reach": [[0.5, 0.2, 0]], "seen": [[1, 0.5, 0]]}
    with np.errstate(invalid="ignore"):
        found = region_statistics({name: np.array(values) for name, values in rows.items()})
    assert found["leaks"][0, :2].tolist() == [0.25, 0.5] and found["leak"].tolist() == [0.375]
    assert found["reached"][0, :2].tolist() == [0.8, 1] and found["inside"][0, :2].tolist() == [0.4, 0.4]
    assert np.isnan(found["leaks"][0, 2])  # a region that no picture shows is left out of the mean
