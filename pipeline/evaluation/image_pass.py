"""One pass over faces: their reconstructions, and what lies half-way between each and the face before."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights

from pipeline.common.progress import progress
from pipeline.config.schema import LAYERS
from pipeline.evaluation import mixes
from pipeline.evaluation.detectability import stored
from pipeline.evaluation.pairs import FacePairs
from pipeline.evaluation.realism import FeatureExtractor
from pipeline.evaluation.statistics import as_rows
from pipeline.measures.distances import named, perceptual_point
from pipeline.measures.effects import Rows
from pipeline.measures.half_way import detours, half_way
from pipeline.measures.reconstruction import fidelity
from pipeline.models.perceptual import PerceptualNetwork

FLOOR, PHOTOGRAPHS = "floor", "photographs"
"""Names of A' and of A among the pictures that realism compares."""
SHARE_OF_A = dict.fromkeys(mixes.BASELINES, 0.5) | mixes.FUSED


class ImagePass(NamedTuple):
    """What the pass found, in the order of `FacePairs`."""

    reconstruction: Rows
    """Of every face."""
    half_way: dict[str, Rows]
    """Of the first pairs, for each of `mixes.FUSED` and `mixes.BASELINES` that there is."""
    features: dict[str, Tensor]
    """The same, and FLOOR and PHOTOGRAPHS, for FID and KID: (n, D) on the CPU."""
    pictures: dict[str, Tensor]
    """The same, and each element flipped alone, for detectability: uint8 (n, 3, S, S) on the CPU."""
    lpips_net: str


@torch.no_grad()
def image_pass(faces: FacePairs, perceptual: PerceptualNetwork, extractor: FeatureExtractor, pairs: int) -> ImagePass:
    """Reconstruct every face, and mix the first `pairs` pairs."""
    lpips = published_lpips(faces.bundle.device)
    of_faces = list[dict[str, Tensor]]()
    of_pairs = defaultdict[str, list[dict[str, Tensor]]](list)
    features, pictures = defaultdict[str, list[Tensor]](list), defaultdict[str, list[Tensor]](list)
    for positions in progress(faces.batches(len(faces)), "reconstructions and mixes", len(faces), "faces", len):
        images = faces.images(range(positions.start - 1, positions.stop))  # the first is a partner only
        z = faces.bundle.encode(images)
        back = faces.bundle.generate(z)
        seen, seen_back = perceptual(images), perceptual(back)
        points = perceptual_point(seen_back)
        found = fidelity(images[1:], back[1:])
        if lpips is not None:
            found["LPIPS"] = lpips(images[1:], back[1:])
        else:
            found["LPIPS_style"] = perceptual_point(seen).distance(points).square()[1:]
        of_faces.append(found)
        count = max(0, min(len(positions), pairs - positions.start))
        a, b = slice(1, count + 1), slice(count)
        for name, each, of_each in ((PHOTOGRAPHS, images, seen), (FLOOR, back, seen_back)):
            features[name].append(extractor.features(each, of_each)[a].cpu())
            pictures[name].append(stored(each[a]))
        if not count:
            continue
        for name, mixed in _mixes(faces, range(positions.start, positions.start + count), images, z, back).items():
            pictures[name].append(stored(mixed))
            if name in SHARE_OF_A:
                seen = perceptual(mixed)
                features[name].append(extractor.features(mixed, seen).cpu())
                found = half_way(mixed, back[a], back[b], images[a], images[b], SHARE_OF_A[name])
                if name == "fused":
                    found |= detours(perceptual_point(seen), points[a], points[b])
                of_pairs[name].append(found)
    net = "LPIPS, AlexNet with its learned weights"
    if lpips is None:
        layers = f"{LAYERS[0]} to {LAYERS[-1]}"
        net = f"in LPIPS's manner, not the published LPIPS: {named(perceptual)}, {layers}, unweighted"
    half = {name: as_rows(each) for name, each in of_pairs.items()}
    return ImagePass(as_rows(of_faces), half, _joined(features), _joined(pictures), net)


@torch.no_grad()
def training_pictures(faces: FacePairs) -> dict[str, Tensor]:
    """What a classifier learns from, by the names of `ImagePass.pictures`: unmixed pictures of the second half of the
    faces, all others of the first half; uint8 (n, 3, S, S) on the CPU.
    """
    pictures, half = defaultdict[str, list[Tensor]](list), len(faces) // 2
    for positions in progress(faces.batches(len(faces)), "mixes to learn from", len(faces), "training faces", len):
        images = faces.images(range(positions.start - 1, positions.stop))
        z = faces.bundle.encode(images)
        back = faces.bundle.generate(z)
        count = max(0, min(len(positions), half - positions.start))
        pictures[PHOTOGRAPHS].append(stored(images[count + 1 :]))
        pictures[FLOOR].append(stored(back[count + 1 :]))
        mixed_positions = range(positions.start, positions.start + count)
        mixed = _mixes(faces, mixed_positions, images, z, back) if count else {}
        for name, each in mixed.items():
            pictures[name].append(stored(each))
    return _joined(pictures)


def _mixes(faces: FacePairs, positions: range, images: Tensor, z: Tensor, back: Tensor) -> dict[str, Tensor]:
    """All mixes of the pairs at `positions`; images, latents and reconstructions begin with the face before them."""
    a, b = slice(1, len(positions) + 1), slice(len(positions))
    found = mixes.fused_and_means(faces.bundle, z[a], z[b], (back[a], back[b]))
    found |= mixes.of_photographs(images[a], images[b], mixes.landmark_pairs(faces, positions))
    return found | mixes.single_flips(faces.bundle, z[a], z[b])


def _joined(batches: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(each) for name, each in batches.items()}


def published_lpips(device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS with AlexNet, images (B, 3, S, S) twice -> (B,); None where AlexNet's weights are not in torch's cache."""
    name = AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    if not (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file():
        return None
    net = LearnedPerceptualImagePatchSimilarity(net_type="alex", sync_on_compute=False).net.to(device)
    return lambda x, y: net(x, y).reshape(len(x))
