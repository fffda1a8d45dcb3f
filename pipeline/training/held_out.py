"""How a model does on held-out faces while it trains: the few measures of an evaluation that cost little."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.inference.bundle import Bundle
from pipeline.measures.effects import effect_matrix, separation
from pipeline.measures.half_way import half_way
from pipeline.measures.reconstruction import fidelity
from pipeline.models.autoencoder import rolled
from pipeline.models.perceptual import PerceptualNetwork

FIDELITY, HALF_WAY = ("L1", "SSIM", "sharpness"), ("ghost", "sharpness")
"""Of what `fidelity` and `half_way` give."""


@torch.no_grad()
def reconstruction_measures(images: Tensor, reconstructions: Tensor) -> dict[str, float]:
    """Means over images, as `held_out/SSIM`.

    Args:
        images, reconstructions: A and A', (n, 3, S, S) in [-1, 1].
    """
    means = fidelity(images, reconstructions)
    return {f"held_out/{name}": float(means[name].mean()) for name in FIDELITY}


@torch.no_grad()
def fusion_measures(
    bundle: Bundle, perceptual: PerceptualNetwork, images: Tensor, at_once: int
) -> tuple[dict[str, float], Tensor]:
    """Means over pairs: each image is A, and the one before it its B.

    Args:
        images: (n, 3, S, S) in [-1, 1] on the bundle's device, 2 or more.
        at_once: how many of them a network gets at a time.

    Returns:
        `reconstruction_measures`; `fusion/half_way_*`, at lambda = 0.5; with one element per layer
        `fusion/own_share` and `fusion/leakage` (see `separation`). And the effect matrix, (N, L).
    """
    z = _in_batches(bundle.encode, images, at_once)
    back = _in_batches(bundle.generate, z, at_once)
    pairs = torch.stack([z, rolled(z)], dim=1)
    between = _in_batches(lambda some: bundle.fuse(some[:, 0], some[:, 1], 0.5), pairs, at_once)
    halves = half_way(between, back, rolled(back), images, rolled(images))
    effects = effect_matrix(bundle.fuse, perceptual, z.split(at_once), bundle.elements)
    kept = separation(effects.double().square().numpy())
    measures = {f"fusion/half_way_{name}": float(halves[name].mean()) for name in HALF_WAY}
    measures |= {f"fusion/{name}": float(kept[name]) for name in ("own_share", "leakage") if kept}
    return reconstruction_measures(images, back) | measures, effects


def _in_batches(work: Callable[[Tensor], Tensor], inputs: Tensor, at_once: int) -> Tensor:
    return torch.cat([work(some) for some in inputs.split(at_once)])
