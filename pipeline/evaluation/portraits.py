"""One pass over all test faces: their reconstructions, and their fusion half-way with the face before."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights

from pipeline.common.progress import progress
from pipeline.config.schema import LAYERS
from pipeline.evaluation.faces import Faces
from pipeline.evaluation.realism import Eye
from pipeline.measures.distances import Point, named, perceptual_point
from pipeline.measures.rows import Rows
from pipeline.models import losses
from pipeline.models.perceptual import PerceptualNetwork

DATA_RANGE = 2.0
"""Images are in [-1, 1]."""


class Portraits(NamedTuple):
    """What the pass found; rows are in the order of `Faces`."""

    reconstruction: Rows
    """Of every face."""
    half_way: Rows
    """Of the first pairs."""
    reconstructed: Tensor
    """What the eye sees of every A', (n, D) on the CPU."""
    fused: Tensor
    """And of the first pairs' C, (pairs, D)."""
    lpips_net: str


@torch.no_grad()
def portraits(faces: Faces, perceptual: PerceptualNetwork, eye: Eye, pairs: int) -> Portraits:
    """Reconstruct every face, and fuse the first `pairs` pairs at lambda = 0.5; `eye` sees both crowds."""
    bundle = faces.bundle
    lpips = published_lpips(bundle.device)
    columns: dict[str, defaultdict[str, list[Tensor]]] = {"all": defaultdict(list), "pairs": defaultdict(list)}
    total = -(-len(faces) // faces.batch_size)
    for places in progress(faces.batches(len(faces)), "reconstruction and half-way fusion", total):
        images = faces.images(range(places.start - 1, places.stop))  # the first is a partner only
        z = bundle.encode(images)
        shown = bundle.generate(z)
        features = perceptual(shown)
        points = perceptual_point(features)
        found = fidelity(images[1:], shown[1:])
        if lpips is not None:
            found["LPIPS"] = lpips(images[1:], shown[1:])
        else:
            found["LPIPS_style"] = perceptual_point(perceptual(images[1:])).distance(points[1:]).square()
        _extend(columns["all"], found | {"seen": eye.see(shown, features)[1:]})
        if pairs > places.start:
            count = min(len(places), pairs - places.start)
            lambda_ = torch.full((bundle.elements,), 0.5, device=z.device)
            fused = bundle.model.fuse_latents(z[1 : count + 1], z[:count], lambda_)
            features = perceptual(fused)
            a, b = slice(1, count + 1), slice(count)
            found = half_way(fused, shown[a], shown[b], images[a], images[b])
            found |= detours(perceptual_point(features), points[a], points[b])
            _extend(columns["pairs"], found | {"seen": eye.see(fused, features)})
    every, fused_pairs = ({name: torch.cat(parts).cpu() for name, parts in each.items()} for each in columns.values())
    reconstructed, fused_features = every.pop("seen"), fused_pairs.pop("seen")
    rows = [{name: values.double().numpy() for name, values in each.items()} for each in (every, fused_pairs)]
    return Portraits(rows[0], rows[1], reconstructed, fused_features, net_name(lpips is not None, perceptual))


def fidelity(images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """How well faces are reconstructed, per image: (B, 3, S, S) in [-1, 1] twice -> name -> (B,).

    `sharpness` is the total variation (8) of A' over that of A.
    """
    psnr = [peak_signal_noise_ratio(x, y, DATA_RANGE) for x, y in zip(reconstructions, images, strict=True)]
    ssim = structural_similarity_index_measure(reconstructions, images, data_range=DATA_RANGE, reduction="none")
    assert isinstance(ssim, Tensor), "a pair only where the whole map is asked for"
    return {
        "L1": losses.reconstruction(reconstructions, images),
        "MSE": (reconstructions - images).square().mean(dim=(1, 2, 3)),
        "PSNR": torch.stack(psnr),
        "SSIM": ssim.reshape(len(images)),
        "sharpness": _over(losses.total_variation(reconstructions), losses.total_variation(images)),
    }


def half_way(fused: Tensor, shown_a: Tensor, shown_b: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Whether C at lambda = 0.5 is a face or a double exposure, per pair.

    Args:
        fused, shown_a, shown_b, a, b: C, A', B', A and B, (B, 3, S, S) in [-1, 1].

    Returns:
        ghost: 1 where C is the pixels' mean of A' and B'; 0 or less where it is as far from it as A' and B' are.
        sharpness: total variation (8) of C over the mean of those of A' and B'; 1: as sharp as they are, 0.5: what
            the pixels' mean of unrelated edges has.
        sharpness_photographs: the same over the mean of A and B, which does not gain where A' and B' are soft.
    """
    exposure = (shown_a + shown_b) / 2
    away = (fused - exposure).square().mean(dim=(1, 2, 3)).sqrt()
    apart = (shown_a - exposure).square().mean(dim=(1, 2, 3)).sqrt()
    edges, edges_a, edges_b, in_a, in_b = map(losses.total_variation, (fused, shown_a, shown_b, a, b))
    return {
        "ghost": 1 - _over(away, apart),
        "sharpness": _over(edges, (edges_a + edges_b) / 2),
        "sharpness_photographs": _over(edges, (in_a + in_b) / 2),
    }


def _over(part: Tensor, whole: Tensor) -> Tensor:
    """0 where both are."""
    return part / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def detours(fused: Point, shown_a: Point, shown_b: Point) -> dict[str, Tensor]:
    """Perceptual distances of C to A' and B', per pair.

    Returns:
        to_a, to_b: the distances.
        detour: their sum over that of A' to B': 1 on the straight way, never less.
        balance: the shorter over the longer: 1 in the middle, 0 at an end.
    """
    to_a, to_b, apart = fused.distance(shown_a), fused.distance(shown_b), shown_a.distance(shown_b)
    longer = torch.maximum(to_a, to_b)
    return {
        "to_a": to_a,
        "to_b": to_b,
        "detour": torch.where(apart > 0, _over(to_a + to_b, apart), 1.0),
        "balance": torch.where(longer > 0, _over(torch.minimum(to_a, to_b), longer), 1.0),
    }


def published_lpips(device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS with AlexNet, images (B, 3, S, S) twice -> (B,); None where AlexNet's weights are not in torch's cache."""
    name = AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    if not (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file():
        return None
    net = LearnedPerceptualImagePatchSimilarity(net_type="alex", sync_on_compute=False).net.to(device)
    return lambda x, y: net(x, y).reshape(len(x))


def net_name(published: bool, perceptual: PerceptualNetwork) -> str:
    """What LPIPS was measured with."""
    if published:
        return "LPIPS, AlexNet with its learned weights"
    return f"in LPIPS's manner, not the published LPIPS: {named(perceptual)}, {LAYERS[0]} to {LAYERS[-1]}, unweighted"


def _extend(columns: dict[str, list[Tensor]], found: dict[str, Tensor]) -> None:
    for name, values in found.items():
        columns[name].append(values)
