"""Half-way fusion of images that are known."""

import pytest
import torch

from pipeline.measures.distances import pixel_point
from pipeline.measures.half_way import detours, half_way


def stripes(columns: list[int]) -> torch.Tensor:
    image = torch.zeros(1, 3, 16, 16)
    image[..., columns] = 1
    return image


def test_a_double_exposure_is_a_ghost_and_loses_half_its_sharpness() -> None:
    a, b = stripes([2, 3, 4]), stripes([10, 11, 12])  # edges that do not touch
    found = half_way((a + b) / 2, a, b, 2 * a, 2 * b)
    assert found["ghost"].item() == pytest.approx(1) and found["sharpness"].item() == pytest.approx(0.5)
    assert found["sharpness_photographs"].item() == pytest.approx(0.125)  # squares of differences
    found = half_way(stripes([6, 7, 8]), a, b, a, b)
    assert found["ghost"].item() < 0.3 and found["sharpness"].item() == pytest.approx(1)
    assert half_way(a, a, b, a, b)["ghost"].item() == pytest.approx(0, abs=1e-6)
    assert all(torch.isfinite(value).all() for value in half_way(a, a, a, a, a).values())


def test_a_quarter_of_a_is_compared_with_that_exposure() -> None:
    a, b = stripes([2, 3, 4]), stripes([10, 11, 12])
    found = half_way((a + 3 * b) / 4, a, b, a, b, share=0.25)
    assert found["ghost"].item() == pytest.approx(1) and found["sharpness"].item() == pytest.approx(0.625)
    assert half_way(b, a, b, a, b, share=0.25)["ghost"].item() == pytest.approx(0, abs=1e-6)


def test_detours() -> None:
    a, b = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    aside = torch.tensor([1.0, 0, 1, 0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    straight = detours(*map(pixel_point, (0.25 * b, a, b)))
    assert straight["detour"].item() == pytest.approx(1) and straight["balance"].item() == pytest.approx(1 / 3)
    around = detours(*map(pixel_point, (aside, a, b)))
    assert around["detour"].item() == pytest.approx(2**0.5) and around["balance"].item() == pytest.approx(1)
    assert detours(*map(pixel_point, (a, a, a)))["detour"].item() == 1
