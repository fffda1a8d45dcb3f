"""The loss terms, METHOD (2) to (10): tensors in, one float32 value per image out, unweighted.

Images are (B, 3, H, W) in [-1, 1]; features are (B, C, H, W), after ReLU. Nothing here knows of networks,
ranks or weights, except `weighted_total`, which applies the weights once, by explicit key.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NOT_METHODS = ("ssim", "separation", "path")
"""Terms that METHOD does not have: a weight of 0 leaves such a term out."""
WINDOW, WINDOW_DEVIATION = 5, 1.5
"""Of SSIM: pixels on each side of a window's centre, and the deviation of its Gaussian."""
SSIM_FLOORS = ((0.01 * 2) ** 2, (0.03 * 2) ** 2)
"""Of SSIM, for images whose range is 2."""
TINY_DISTANCE, DEAD_SQUARE = 1e-12, 1e-4
"""Of `separation`: added to a squared distance, and to a ratio of two, before these divide: no NaN at 0."""


def wide(tensor: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def reconstruction(output: Tensor, target: Tensor) -> Tensor:
    """L1 of (7) and (10), mean over C x H x W. Both (B, C, H, W) -> (B,)."""
    return (wide(output) - wide(target)).abs().mean(dim=(1, 2, 3))


def structural_similarity(output: Tensor, target: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004): means over Gaussian windows of 11 x 11, reflected at edges. Its term, ours, is 1 - SSIM.

    As torchmetrics has it, which `evaluate` uses; but as products, which are fast and a GPU repeats bit for bit, and in
    float64, since variances are small differences and float32 products may be rounded to TF32.

    Both (B, C, S, S), S > 5, -> (B,).
    """
    side, device = output.shape[-1], output.device
    place = torch.arange(-WINDOW, WINDOW + 1, dtype=torch.float64, device=device)
    bell = torch.exp(-place.square() / (2 * WINDOW_DEVIATION**2))
    unit = F.pad(torch.eye(side, dtype=torch.float64, device=device)[:, None], (WINDOW, WINDOW), mode="reflect")
    along = F.conv1d(unit, (bell / bell.sum())[None, None])[:, 0]  # (S, S): what each pixel weighs in each window
    with torch.autocast(device.type, enabled=False):
        x, y = output.double(), target.double()
        x_mean, y_mean, both, xy = (along.T @ each @ along for each in (x, y, x * x + y * y, x * y))
    product, squares = x_mean * y_mean, x_mean.square() + y_mean.square()
    near = (2 * product + SSIM_FLOORS[0]) / (squares + SSIM_FLOORS[0])
    alike = (2 * (xy - product) + SSIM_FLOORS[1]) / (both - squares + SSIM_FLOORS[1])
    return (near * alike).mean(dim=(1, 2, 3)).to(wide(output).dtype)


def total_variation(images: Tensor) -> Tensor:
    """(8): squared differences of neighbours, summed, divided by C x H x W. (B, C, H, W) -> (B,)."""
    images = wide(images)
    across = (images[..., :, 1:] - images[..., :, :-1]).square().sum(dim=(1, 2, 3))
    down = (images[..., 1:, :] - images[..., :-1, :]).square().sum(dim=(1, 2, 3))
    return (across + down) / images[0].numel()


def gram_matrix(features: Tensor) -> Tensor:
    """(6): psi[c, c'] = 1 / (C H W) sum_hw p[c] p[c']. (B, C, H, W) -> (B, C, C) float32.

    Outside autocast: the sums overflow fp16.
    """
    channels = features.shape[1]
    with torch.autocast(features.device.type, enabled=False):
        flat = wide(features).movedim(1, -1).flatten(1, 2).transpose(1, 2)  # (B, C, H * W), as it lies in memory
        products: Tensor = _OwnProducts.apply(flat)  # type: ignore[no-untyped-call]
        return products / (channels * flat.shape[2])


class _OwnProducts(torch.autograd.Function):
    """X X^T of (B, C, n). Its gradient takes one product with X, where autograd's takes two and adds them.

    The gradient lies in memory as X does: where layouts meet, sums are slow.
    """

    @staticmethod
    def forward(context: Any, flat: Tensor) -> Tensor:
        context.save_for_backward(flat)
        return flat @ flat.transpose(1, 2)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        flat: Tensor
        (flat,) = context.saved_tensors
        with torch.autocast(flat.device.type, enabled=False):
            both = gradient + gradient.transpose(1, 2)
            return (flat.transpose(1, 2) @ both).transpose(1, 2) if flat.stride(1) == 1 else both @ flat


def content(features: Tensor, features_a: Tensor, features_b: Tensor, lambda_: Tensor) -> Tensor:
    """One layer of (4): lambda d(C, A) + (1 - lambda) d(C, B), d the mean square over C x H x W.

    Args:
        features, features_a, features_b: (B, C, H, W) of the fused image and of the two inputs.
        lambda_: (B,) of the layer's owner, or (B, h, w) over the latent's grid, each cell holding for its block of
            the feature map.

    Returns:
        (B,).
    """
    to_a = (wide(features) - wide(features_a)).square().mean(dim=1)  # (B, H, W)
    to_b = (wide(features) - wide(features_b)).square().mean(dim=1)
    if lambda_.dim() == 1:
        lambda_ = lambda_[:, None, None]
    else:
        lambda_ = F.interpolate(lambda_[:, None], size=to_a.shape[1:], mode="nearest-exact")[:, 0]
    return (lambda_ * to_a + (1 - lambda_) * to_b).mean(dim=(1, 2))


def style(features: Tensor, features_a: Tensor, features_b: Tensor, lambda_: Tensor) -> Tensor:
    """One layer of (5): lambda d(C, A) + (1 - lambda) d(C, B), d the mean square over the Gram difference.

    Args:
        features, features_a, features_b: (B, C, H, W) of the fused image and of the two inputs.
        lambda_: (B,) of the layer's owner. A Gram matrix has no place, so a spatial lambda enters by its mean.

    Returns:
        (B,).
    """
    return style_of_grams(gram_matrix(features), gram_matrix(features_a), gram_matrix(features_b), lambda_)


def style_of_grams(gram: Tensor, gram_a: Tensor, gram_b: Tensor, lambda_: Tensor) -> Tensor:
    """`style` where the Gram matrices, (B, C, C), are known."""
    to_a = (gram - gram_a).square().mean(dim=(1, 2))
    to_b = (gram - gram_b).square().mean(dim=(1, 2))
    return lambda_ * to_a + (1 - lambda_) * to_b


def adversarial_critic(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """-(2) per image: D(C) - D(I), minimised by D. Both (B,) -> (B,)."""
    return wide(scores_fake) - wide(scores_real)


def adversarial_generator(scores_fake: Tensor) -> Tensor:
    """The part of (2) that E and G minimise: -D(C). (B,) -> (B,)."""
    return -wide(scores_fake)


def gradient_penalty(gradients: Tensor, k: float = 2.0, p: float = 6.0) -> Tensor:
    """Wasserstein divergence: k ||g||_2^p over all but the batch dimension. (B, ...) -> (B,).

    As (sum g^2)^(p/2): no square root, so no NaN in the second derivative at g = 0. fp32, or ||g||^6 overflows.
    """
    return k * wide(gradients).square().flatten(1).sum(dim=1).pow(p / 2)


def separation(moved: Tensor, whole: Tensor) -> Tensor:
    """1 - own share + leakage, as `evaluation.effects.separation` measures them over all pairs together (ours).

    Args:
        moved: (B, N, L), N = L: squared distances d(C_n, A') on each layer with element n alone flipped from A to B.
        whole: (B, L): d(B', A').

    Returns:
        (B,), what each pair adds to the mean, which is in [0, 2]: 0 where every element moves the layer that it owns
        and no other; 2 - 2 / N by chance. Pairs count by how far they are apart, as they do where it is measured.
        What an element moves its layer further than all elements together do counts as if it were another's: such a
        change is no property of B, but a mark for the network that measures.
    """
    unit = whole.mean(dim=0) + TINY_DISTANCE
    squares, most = moved / unit + DEAD_SQUARE, whole / unit + DEAD_SQUARE
    means = squares.mean(dim=0)
    own = squares.diagonal(dim1=1, dim2=2).minimum(most)
    return 2 - (own / means.sum(dim=0)).mean(dim=1) - (own / means.sum(dim=1)).mean(dim=1)


def path(to_a: Tensor, to_start: Tensor, start_to_a: Tensor) -> Tensor:
    """How squarely elements that leave A lead back to it first, on the way from A' to C_n, element n flipped (ours).

    Where that way and the one from A' to A make an acute angle, C comes nearer to A before it leaves.

    Args:
        to_a, to_start: (B, N), squared distances d(C_n, A) and d(C_n, A'), of a space with an inner product.
        start_to_a: (B,), d(A', A).

    Returns:
        (B,) in [0, 1]: the mean over elements of the angle's cosine, 0 where it is not acute.
    """
    start_to_a = start_to_a[:, None]
    lengths = (to_start * start_to_a + TINY_DISTANCE).sqrt()
    return ((to_start + start_to_a - to_a) / (2 * lengths)).clamp(min=0).mean(dim=1)


def weighted_total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """(11): the sum of weight x batch mean.

    Args:
        terms: name -> (B,).
        weights: name -> weight, for exactly the same names.

    Raises:
        ValueError: on a missing or an extra key.
    """
    if terms.keys() != weights.keys():
        raise ValueError(f"terms and weights differ in {sorted(terms.keys() ^ weights.keys())}")
    return torch.stack([weights[name] * term.mean() for name, term in terms.items()]).sum()
