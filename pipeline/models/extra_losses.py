"""Loss terms that the paper does not have; a weight of 0 leaves one out. As in `losses`: (B,) float32, unweighted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.losses import wide

EXTRA_TERMS = ("ssim", "separation", "path")
"""Their names in `loss_weights`."""

WINDOW, WINDOW_DEVIATION = 5, 1.5
"""Of SSIM: pixels on each side of a window's centre, and the standard deviation of its Gaussian."""
SSIM_CONSTANTS = ((0.01 * 2) ** 2, (0.03 * 2) ** 2)
"""Of SSIM, for images whose range is 2."""
TINY_DISTANCE, TINY_RATIO = 1e-12, 1e-4
"""Added to a squared distance, and to a ratio of two, before dividing by it: no NaN where images are equal."""


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


def separation(moved: Tensor, whole: Tensor) -> Tensor:
    """1 - own share + leakage, as `measures.effects.separation` measures them over all pairs together.

    Pairs count by how far they are apart, as they do in that measure. What an element moves its layer further than all
    elements together do counts as if it were another's: it is no property of B, but an artefact the perceptual network
    reacts to.

    Args:
        moved: (B, N, L), N = L: squared distances d(C_n, A') on each layer with element n alone flipped from A to B.
        whole: (B, L): d(B', A').

    Returns:
        (B,), what each pair adds to the mean, which is in [0, 2]: 0 where every element moves the layer that it owns
        and no other; 2 - 2 / N by chance.
    """
    unit = whole.mean(dim=0) + TINY_DISTANCE
    squares, limit = moved / unit + TINY_RATIO, whole / unit + TINY_RATIO
    means = squares.mean(dim=0)
    own = squares.diagonal(dim1=1, dim2=2).minimum(limit)
    return 2 - (own / means.sum(dim=0)).mean(dim=1) - (own / means.sum(dim=1)).mean(dim=1)


def path(to_a: Tensor, to_start: Tensor, start_to_a: Tensor) -> Tensor:
    """How much an element, flipped alone, leads back to A before it leaves it: on the way from A' to C_n.

    Where the angle between that way and the one from A' to A is acute, C first comes nearer to A.

    Args:
        to_a, to_start: (B, N), squared distances d(C_n, A) and d(C_n, A'), of a space with an inner product.
        start_to_a: (B,), d(A', A).

    Returns:
        (B,) in [0, 1]: the mean over elements of the angle's cosine, 0 where it is not acute.
    """
    start_to_a = start_to_a[:, None]
    lengths = (to_start * start_to_a + TINY_DISTANCE).sqrt()
    return ((to_start + start_to_a - to_a) / (2 * lengths)).clamp(min=0).mean(dim=1)
