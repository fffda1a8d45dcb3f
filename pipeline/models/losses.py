"""The paper's loss terms (docs/method.md, eq. 2 to 11): tensors in, one float32 value per image out, unweighted.

Images are (B, 3, H, W) in [-1, 1]; features are (B, C, H, W), after ReLU. Nothing here knows of networks,
ranks or weights, except `weighted_total`, which applies the weights once, by explicit key.
Terms that the paper does not have are in `extra_losses`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def reconstruction(output: Tensor, target: Tensor) -> Tensor:
    """L1 of eq. 7 and 10, mean over C x H x W. Both (B, C, H, W) -> (B,)."""
    return (wide(output) - wide(target)).abs().mean(dim=(1, 2, 3))


def total_variation(images: Tensor) -> Tensor:
    """Eq. 8: squared differences of neighbours, summed, divided by C x H x W. (B, C, H, W) -> (B,)."""
    images = wide(images)
    across = (images[..., :, 1:] - images[..., :, :-1]).square().sum(dim=(1, 2, 3))
    down = (images[..., 1:, :] - images[..., :-1, :]).square().sum(dim=(1, 2, 3))
    return (across + down) / images[0].numel()


def gram_matrix(features: Tensor) -> Tensor:
    """Eq. 6: psi[c, c'] = 1 / (C H W) sum_hw p[c] p[c']. (B, C, H, W) -> (B, C, C) float32.

    Outside autocast: the sums overflow fp16.
    """
    channels = features.shape[1]
    with torch.autocast(features.device.type, enabled=False):
        flat = wide(features).movedim(1, -1).flatten(1, 2).transpose(1, 2)  # (B, C, H * W), as it lies in memory
        products: Tensor = _OwnProducts.apply(flat)  # type: ignore[no-untyped-call]
        return products / (channels * flat.shape[2])


class _OwnProducts(torch.autograd.Function):
    """X X^T of (B, C, n). Its gradient takes one product with X, where autograd's takes two and adds them.

    The gradient has the memory layout of X: adding tensors of different layouts is slow.
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
    """One layer of eq. 4: lambda d(C, A) + (1 - lambda) d(C, B), d the mean square over C x H x W.

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
    """One layer of eq. 5: lambda d(C, A) + (1 - lambda) d(C, B), d the mean square over the Gram difference.

    Args:
        features, features_a, features_b: (B, C, H, W) of the fused image and of the two inputs.
        lambda_: (B,) of the layer's owner. A Gram matrix has no rows and columns of the image:
            of a spatial lambda give the mean.

    Returns:
        (B,).
    """
    return style_of_grams(gram_matrix(features), gram_matrix(features_a), gram_matrix(features_b), lambda_)


def style_of_grams(gram: Tensor, gram_a: Tensor, gram_b: Tensor, lambda_: Tensor) -> Tensor:
    """`style` of Gram matrices, (B, C, C), that are already computed."""
    to_a = (gram - gram_a).square().mean(dim=(1, 2))
    to_b = (gram - gram_b).square().mean(dim=(1, 2))
    return lambda_ * to_a + (1 - lambda_) * to_b


def adversarial_critic(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """Eq. 2, negated, per image: D(C) - D(I), minimised by D. Both (B,) -> (B,)."""
    return wide(scores_fake) - wide(scores_real)


def adversarial_generator(scores_fake: Tensor) -> Tensor:
    """The part of eq. 2 that E and G minimise (eq. 3): -D(C). (B,) -> (B,)."""
    return -wide(scores_fake)


def gradient_penalty(gradients: Tensor, k: float = 2.0, p: float = 6.0) -> Tensor:
    """k ||g||_2^p over all but the batch dimension (Wu et al. 2018, Wasserstein divergence). (B, ...) -> (B,).

    As (sum g^2)^(p/2): no square root, so no NaN in the second derivative at g = 0. fp32, or ||g||^6 overflows.
    """
    return k * wide(gradients).square().flatten(1).sum(dim=1).pow(p / 2)


def weighted_total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Eq. 11: the sum of weight x batch mean.

    Args:
        terms: name -> (B,).
        weights: name -> weight, for exactly the same names.

    Raises:
        ValueError: on a missing or an extra key.
    """
    if terms.keys() != weights.keys():
        raise ValueError(f"terms and weights differ in {sorted(terms.keys() ^ weights.keys())}")
    return torch.stack([weights[name] * term.mean() for name, term in terms.items()]).sum()
