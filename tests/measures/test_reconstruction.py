"""Fidelity of images that are known."""

import numpy as np
import pytest
import torch

from pipeline.measures.reconstruction import fidelity


def test_fidelity_is_per_image() -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    back = images.clone()
    back[1] += 0.5
    found = fidelity(images, back)
    assert found["L1"].tolist() == pytest.approx([0, 0.5, 0])
    assert found["MSE"].tolist() == pytest.approx([0, 0.25, 0])
    assert found["PSNR"][1].item() == pytest.approx(10 * np.log10(4 / 0.25), rel=1e-5)
    assert found["sharpness"].tolist() == pytest.approx([1, 1, 1])  # a shift has no edges
    assert fidelity(images, images / 2)["sharpness"].tolist() == pytest.approx([0.25] * 3)
    assert found["SSIM"].tolist() == pytest.approx([1, found["SSIM"][1].item(), 1]) and found["SSIM"][1] < 0.99
