"""FID and KID: Frechet and kernel distances of features between generated images and training images."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.utilities.imports import _TORCH_FIDELITY_AVAILABLE

from pipeline.config.schema import LAYERS
from pipeline.data.images import to_uint8
from pipeline.evaluation.statistics import plain
from pipeline.measures.distances import named
from pipeline.models import losses
from pipeline.models.perceptual import PerceptualNetwork

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
"""The file in torch's cache that torch-fidelity, on which torchmetrics' Inception rests, downloads."""
KERNEL_SUBSETS, KERNEL_SIZE = 50, 100
FEWEST = 8
"""With fewer images a kernel distance is left out."""


class FeatureExtractor(NamedTuple):
    """Feature extractor for FID and KID."""

    name: str
    maps: Callable[[Tensor, list[Tensor] | None], Tensor]
    """Images (B, 3, S, S) in [-1, 1] and, where they are at hand, P's features of them -> (B, D, h, w)."""
    scaled: bool
    """Whether to divide features by their root mean square over training images: P's scale depends on the recipe."""

    def features(self, images: Tensor, perceptual_features: list[Tensor] | None = None) -> Tensor:
        """Means over rows and columns, (B, D)."""
        return losses.wide(self.maps(images, perceptual_features)).mean(dim=(2, 3))

    def of_training(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of a batch of training images: features (B, D), and the mean squares of their maps (B,); on the CPU."""
        maps = losses.wide(self.maps(images, None))
        return maps.mean(dim=(2, 3)).cpu(), maps.square().mean(dim=(1, 2, 3)).cpu()

    def unit(self, squares: Sequence[Tensor]) -> float:
        """What all features are to be divided by, from the mean squares of all training images."""
        return float(torch.cat(list(squares)).mean().sqrt()) if self.scaled else 1.0


def feature_extractor(perceptual: PerceptualNetwork, device: torch.device) -> FeatureExtractor:
    """Inception where torch-fidelity and its weights are installed, else the last layer of P."""
    if _TORCH_FIDELITY_AVAILABLE and (Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION).is_file():
        inception = FrechetInceptionDistance(2048, sync_on_compute=False).inception.to(device)
        name = "Inception v3, 2048 features"
        return FeatureExtractor(name, lambda images, _: inception(to_uint8(images))[..., None, None], scaled=False)

    def last(images: Tensor, features: list[Tensor] | None) -> Tensor:
        return (features or perceptual(images))[-1]

    name = f"not Inception: {named(perceptual)}, mean over places of {LAYERS[-1]}"
    return FeatureExtractor(name, last, scaled=True)


def realism(train: Tensor, crowds: dict[str, Tensor], seed: int) -> dict[str, Any]:
    """Distances of several crowds of pictures from the training images.

    Args:
        train: features (n, D) of the training images.
        crowds: name -> features (m, D); `fused` and `floor` are those of C at lambda = 0.5 and of A'.

    Returns:
        FID_<name>: Frechet distance; None, with `FID_left_out`, where there are not more images than features: their
            covariance would be singular, and the distance mostly bias.
        KID_<name>: unbiased kernel distance, 0 for alike sets of images; KID_<name>_std over random subsets.
        FID_fused_over_floor: what fusion costs beyond the decoder.
    """
    fewest = min(len(train), *map(len, crowds.values()))
    found: dict[str, Any] = {"count": len(crowds["fused"]), "train_count": len(train), "features": train.shape[1]}
    for name, features in crowds.items():
        found[f"FID_{name}"] = plain(frechet(train, features))
        found[f"KID_{name}"], found[f"KID_{name}_std"] = map(plain, kernel(train, features, seed))
    if found["FID_fused"] is None:
        found["FID_left_out"] = f"{fewest} images for {train.shape[1]} features; more images than features are needed"
    else:
        found["FID_fused_over_floor"] = plain(found["FID_fused"] / found["FID_floor"])
    return found


def frechet(some: Tensor, others: Tensor) -> float:
    """Frechet distance of two sets of features (n, D); NaN unless n > D in both."""
    if min(len(some), len(others)) <= some.shape[1]:
        return float("nan")
    metric = FrechetInceptionDistance(_feature_input(some.shape[1]), sync_on_compute=False)
    metric.update(some.double(), real=True)
    metric.update(others.double(), real=False)
    return float(metric.compute())


def kernel(some: Tensor, others: Tensor, seed: int) -> tuple[float, float]:
    """Kernel distance (cubic, unbiased): mean and standard deviation over random subsets; NaN below FEWEST images."""
    size = min(KERNEL_SIZE, len(some), len(others))
    if size < FEWEST:
        return float("nan"), float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features: they are few
        metric = KernelInceptionDistance(
            _feature_input(some.shape[1]), subsets=KERNEL_SUBSETS, subset_size=size, sync_on_compute=False
        )
    metric.update(some.double(), real=True)
    metric.update(others.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def _feature_input(features: int) -> nn.Module:
    """The network of a metric that is given features in place of images."""
    identity = nn.Identity()
    identity.register_buffer("num_features", torch.tensor(features))
    return identity
