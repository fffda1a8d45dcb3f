"""Loss terms that the paper does not have; a weight of 0 leaves one out. As in `losses`: (B,) float32, unweighted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.losses import wide

EXTRA_TERMS = ("ssim",)
"""Their names in `loss_weights`."""

WINDOW, WINDOW_DEVIATION = 5, 1.5
"""Of SSIM: pixels on each side of a window's centre, and the standard deviation of its Gaussian."""
SSIM_CONSTANTS = ((0.01 * 2) ** 2, (0.03 * 2) ** 2)
"""Of SSIM, for images whose range is 2."""


def structural_similarity(output: Tensor, target: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004), the mean over Gaussian windows of 11 x 11, reflected at edges. The term is 1 - SSIM.

    The same numbers as torchmetrics gives, which `evaluate` uses. Computed as matrix products, which a GPU repeats bit
    for bit, and in float64, since variances are small differences of large squares.

    Args:
        output, target: (B, C, S, S), S > 5, in [-1, 1].

    Returns:
        (B,) in [-1, 1].
    """
    side, device = output.shape[-1], output.device
    offset = torch.arange(-WINDOW, WINDOW + 1, dtype=torch.float64, device=device)
    gaussian = torch.exp(-offset.square() / (2 * WINDOW_DEVIATION**2))
    unit = F.pad(torch.eye(side, dtype=torch.float64, device=device)[:, None], (WINDOW, WINDOW), mode="reflect")
    along = F.conv1d(unit, (gaussian / gaussian.sum())[None, None])[:, 0]  # (S, S): each pixel's weight in each window
    with torch.autocast(device.type, enabled=False):
        x, y = output.double(), target.double()
        x_mean, y_mean, squares, xy = (along.T @ each @ along for each in (x, y, x * x + y * y, x * y))
    mean_product, mean_squares = x_mean * y_mean, x_mean.square() + y_mean.square()
    luminance = (2 * mean_product + SSIM_CONSTANTS[0]) / (mean_squares + SSIM_CONSTANTS[0])
    structure = (2 * (xy - mean_product) + SSIM_CONSTANTS[1]) / (squares - mean_squares + SSIM_CONSTANTS[1])
    return (luminance * structure).mean(dim=(1, 2, 3)).to(wide(output).dtype)
