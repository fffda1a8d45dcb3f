"""The element-effect matrix: which latent element changes which perceptual layer."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline import losses
from pipeline.config import CONTENT_LAYERS, LAYERS
from pipeline.models.autoencoder import FusionAutoencoder, rolled
from pipeline.models.perceptual import PerceptualNetwork


def layer_distances(features: list[Tensor], others: list[Tensor]) -> Tensor:
    """Squared distance per image and layer, as the losses measure it: (4) for content layers, (5) for style layers.

    Args:
        features, others: one (B, C, H, W) per layer of `LAYERS`.

    Returns:
        (B, L).
    """
    all_ones = torch.ones(len(features[0]), device=features[0].device)
    terms = []
    for layer, x, y in zip(LAYERS, features, others, strict=True):
        term = losses.content if layer in CONTENT_LAYERS else losses.style
        terms.append(term(x, y, y, all_ones))
    return torch.stack(terms, dim=1)


@torch.no_grad()
def effect_matrix(
    model: FusionAutoencoder, perceptual: PerceptualNetwork, batches: Iterable[Tensor], elements: int
) -> Tensor:
    """How far each element, flipped alone from A to B, moves each layer, relative to flipping all of them.

    Args:
        model: in eval mode, on the device of `perceptual`.
        batches: (B, 3, S, S) in [-1, 1]; B is the batch rolled by one.

    Returns:
        (N, L) float32 on the CPU: root of the ratio of the mean squared distances d(C_n, A') / d(B', A').
    """
    device = next(model.parameters()).device
    moved = torch.zeros(elements, len(LAYERS), dtype=torch.float64)
    whole = torch.zeros(len(LAYERS), dtype=torch.float64)
    for images in batches:
        z_a = model.encoder(images.to(device))
        z_b = rolled(z_a)
        at_a = perceptual(model.generator(z_a))
        whole += layer_distances([rolled(f) for f in at_a], at_a).sum(dim=0).double().cpu()
        for element in range(elements):
            lambda_ = torch.ones(elements, device=device)
            lambda_[element] = 0
            fused = perceptual(model.fuse_latents(z_a, z_b, lambda_))
            moved[element] += layer_distances(fused, at_a).sum(dim=0).double().cpu()
    return (moved / whole).sqrt().float()


def own_shares(effects: Tensor) -> Tensor:
    """Of each layer's change, the part that its own element causes: (N, N) effects -> (N,). Chance is 1/N.

    Raises:
        ValueError: unless there is one element per layer (the `layerwise` reading).
    """
    if effects.shape[0] != effects.shape[1]:
        raise ValueError(f"own shares need one element per layer, not a matrix of {tuple(effects.shape)}")
    squares = effects.square()
    return squares.diagonal() / squares.sum(dim=0)
