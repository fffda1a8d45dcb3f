"""How well faces are reconstructed."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pipeline.models import losses

DATA_RANGE = 2.0
"""Images are in [-1, 1]."""


def fidelity(images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """How close A' is to A, per image.

    Args:
        images, reconstructions: A and A', (B, 3, S, S) in [-1, 1].

    Returns:
        (B,) each: L1, MSE, PSNR (dB), SSIM (1: alike), and sharpness, the total variation (docs/method.md, eq. 8) of A'
        over that of A.
    """
    psnr = [peak_signal_noise_ratio(x, y, DATA_RANGE) for x, y in zip(reconstructions, images, strict=True)]
    ssim = structural_similarity_index_measure(reconstructions, images, data_range=DATA_RANGE, reduction="none")
    assert isinstance(ssim, Tensor), "a pair only where the whole map is asked for"
    return {
        "L1": losses.reconstruction(reconstructions, images),
        "MSE": (reconstructions - images).square().mean(dim=(1, 2, 3)),
        "PSNR": torch.stack(psnr),
        "SSIM": ssim.reshape(len(images)),
        "sharpness": ratio(losses.total_variation(reconstructions), losses.total_variation(images)),
    }


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where both are 0."""
    return part / whole.clamp(min=torch.finfo(whole.dtype).tiny)
