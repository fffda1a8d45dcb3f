"""Fidelity and half-way fusion of images that are known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.evaluation import portraits
from pipeline.measures.distances import pixel_point


def stripes(columns: list[int]) -> torch.Tensor:
    image = torch.zeros(1, 3, 16, 16)
    image[..., columns] = 1
    return image


def test_fidelity_is_per_image() -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = images.clone()
    shown[1] += 0.5
    found = portraits.fidelity(images, shown)
    assert found["L1"].tolist() == pytest.approx([0, 0.5, 0])
    assert found["MSE"].tolist() == pytest.approx([0, 0.25, 0])
    assert found["PSNR"][1].item() == pytest.approx(10 * np.log10(4 / 0.25), rel=1e-5)
    assert found["sharpness"].tolist() == pytest.approx([1, 1, 1])  # a shift has no edges
    assert portraits.fidelity(images, images / 2)["sharpness"].tolist() == pytest.approx([0.25] * 3)
    assert found["SSIM"].tolist() == pytest.approx([1, found["SSIM"][1].item(), 1]) and found["SSIM"][1] < 0.99


def test_a_double_exposure_is_a_ghost_and_loses_half_its_sharpness() -> None:
    a, b = stripes([2, 3, 4]), stripes([10, 11, 12])  # edges that do not touch
    found = portraits.half_way((a + b) / 2, a, b, 2 * a, 2 * b)
    assert found["ghost"].item() == pytest.approx(1) and found["sharpness"].item() == pytest.approx(0.5)
    assert found["sharpness_photographs"].item() == pytest.approx(0.125)  # squares of differences
    found = portraits.half_way(stripes([6, 7, 8]), a, b, a, b)
    assert found["ghost"].item() < 0.3 and found["sharpness"].item() == pytest.approx(1)
    assert portraits.half_way(a, a, b, a, b)["ghost"].item() == pytest.approx(0, abs=1e-6)
    assert all(torch.isfinite(value).all() for value in portraits.half_way(a, a, a, a, a).values())


def test_detours() -> None:
    a, b = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    aside = torch.tensor([1.0, 0, 1, 0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    straight = portraits.detours(*map(pixel_point, (0.25 * b, a, b)))
    assert straight["detour"].item() == pytest.approx(1) and straight["balance"].item() == pytest.approx(1 / 3)
    around = portraits.detours(*map(pixel_point, (aside, a, b)))
    assert around["detour"].item() == pytest.approx(2**0.5) and around["balance"].item() == pytest.approx(1)
    assert portraits.detours(*map(pixel_point, (a, a, a)))["detour"].item() == 1


def test_the_published_lpips_needs_weights_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert portraits.published_lpips(torch.device("cpu")) is None
