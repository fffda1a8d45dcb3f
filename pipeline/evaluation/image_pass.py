"""One pass over all test faces: their reconstructions, and their fusion half-way with the face before."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights

from pipeline.common.progress import progress
from pipeline.config.schema import LAYERS
from pipeline.evaluation.pairs import FacePairs
from pipeline.evaluation.realism import FeatureExtractor
from pipeline.evaluation.statistics import as_rows
from pipeline.measures.distances import named, perceptual_point
from pipeline.measures.effects import Rows
from pipeline.measures.half_way import detours, half_way
from pipeline.measures.reconstruction import fidelity
from pipeline.models.perceptual import PerceptualNetwork


class ImagePass(NamedTuple):
    """What the pass found, in the order of `FacePairs`."""

    reconstruction: Rows
    """Of every face."""
    half_way: Rows
    """Of the first pairs."""
    reconstructed: Tensor
    """Features of every A' for FID and KID, (n, D) on the CPU."""
    fused: Tensor
    """And of the first pairs' C, (pairs, D)."""
    lpips_net: str


@torch.no_grad()
def image_pass(faces: FacePairs, perceptual: PerceptualNetwork, extractor: FeatureExtractor, pairs: int) -> ImagePass:
    """Reconstruct every face, and fuse the first `pairs` pairs at lambda = 0.5."""
    bundle = faces.bundle
    lpips = published_lpips(bundle.device)
    of_faces, of_pairs = list[dict[str, Tensor]](), list[dict[str, Tensor]]()
    total = -(-len(faces) // faces.batch_size)
    for positions in progress(faces.batches(len(faces)), "reconstruction and half-way fusion", total):
        images = faces.images(range(positions.start - 1, positions.stop))  # the first is a partner only
        z = bundle.encode(images)
        back = bundle.generate(z)
        features = perceptual(back)
        points = perceptual_point(features)
        found = fidelity(images[1:], back[1:])
        if lpips is not None:
            found["LPIPS"] = lpips(images[1:], back[1:])
        else:
            found["LPIPS_style"] = perceptual_point(perceptual(images[1:])).distance(points[1:]).square()
        of_faces.append(found | {"features": extractor.features(back, features)[1:]})
        if pairs > positions.start:
            count = min(len(positions), pairs - positions.start)
            a, b = slice(1, count + 1), slice(count)
            fused = bundle.fuse(z[a], z[b], 0.5)
            features = perceptual(fused)
            found = half_way(fused, back[a], back[b], images[a], images[b])
            found |= detours(perceptual_point(features), points[a], points[b])
            of_pairs.append(found | {"features": extractor.features(fused, features)})
    reconstructed = torch.cat([each.pop("features") for each in of_faces]).cpu()
    fused_features = torch.cat([each.pop("features") for each in of_pairs]).cpu()
    net = "LPIPS, AlexNet with its learned weights"
    if lpips is None:
        layers = f"{LAYERS[0]} to {LAYERS[-1]}"
        net = f"in LPIPS's manner, not the published LPIPS: {named(perceptual)}, {layers}, unweighted"
    return ImagePass(as_rows(of_faces), as_rows(of_pairs), reconstructed, fused_features, net)


def published_lpips(device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS with AlexNet, images (B, 3, S, S) twice -> (B,); None where AlexNet's weights are not in torch's cache."""
    name = AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    if not (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file():
        return None
    net = LearnedPerceptualImagePatchSimilarity(net_type="alex", sync_on_compute=False).net.to(device)
    return lambda x, y: net(x, y).reshape(len(x))
