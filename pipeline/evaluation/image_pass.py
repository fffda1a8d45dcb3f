"""One pass over faces: their reconstructions, and what lies half-way between each and the face before."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights

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


class _Batch(NamedTuple):
    """What the pass finds in one batch of faces, by the names of `ImagePass`; all of it on the CPU."""

    of_faces: dict[str, Tensor]
    of_pairs: dict[str, dict[str, Tensor]]
    features: dict[str, Tensor]
    pictures: dict[str, Tensor]


@torch.no_grad()
def image_pass(faces: FacePairs, perceptual: PerceptualNetwork, extractor: FeatureExtractor, pairs: int) -> ImagePass:
    """Reconstruct every face, and mix the first `pairs` pairs."""
    lpips = published_lpips(faces.bundle.device)

    def of_batch(positions: range) -> _Batch:
        images = faces.images(range(positions.start - 1, positions.stop))  # the first is a partner only
        z = faces.bundle.encode(images)
        back = faces.bundle.generate(z)
        seen, seen_back = perceptual(images), perceptual(back)
        points = perceptual_point(seen_back)
        of_faces = fidelity(images[1:], back[1:])
        if lpips is not None:
            of_faces["LPIPS"] = lpips(images[1:], back[1:])
        else:
            of_faces["LPIPS_style"] = perceptual_point(seen).distance(points).square()[1:]
        count = max(0, min(len(positions), pairs - positions.start))
        a, b = slice(1, count + 1), slice(count)
        batch = _Batch(_on_cpu(of_faces), {}, {}, {})
        for name, each, of_each in ((PHOTOGRAPHS, images, seen), (FLOOR, back, seen_back)):
            batch.features[name] = extractor.features(each, of_each)[a].cpu()
            batch.pictures[name] = stored(each[a])
        mixed_positions = range(positions.start, positions.start + count)
        for name, mixed in _mixes(faces, mixed_positions, images, z, back).items() if count else ():
            batch.pictures[name] = stored(mixed)
            if name in SHARE_OF_A:
                seen = perceptual(mixed)
                batch.features[name] = extractor.features(mixed, seen).cpu()
                found = half_way(mixed, back[a], back[b], images[a], images[b], SHARE_OF_A[name])
                if name == "fused":
                    found |= detours(perceptual_point(seen), points[a], points[b])
                batch.of_pairs[name] = _on_cpu(found)
        return batch

    batches = faces.measured(len(faces), "reconstructions and mixes", of_batch)
    net = "LPIPS, AlexNet with its learned weights"
    if lpips is None:
        layers = f"{LAYERS[0]} to {LAYERS[-1]}"
        net = f"in LPIPS's manner, not the published LPIPS: {named(perceptual)}, {layers}, unweighted"
    half = {
        name: as_rows([each.of_pairs[name] for each in batches if name in each.of_pairs])
        for name in batches[0].of_pairs
    }
    features = _joined([each.features for each in batches])
    pictures = _joined([each.pictures for each in batches])
    return ImagePass(as_rows([each.of_faces for each in batches]), half, features, pictures, net)


@torch.no_grad()
def training_pictures(faces: FacePairs) -> dict[str, Tensor]:
    """What a classifier learns from, by the names of `ImagePass.pictures`: unmixed pictures of the second half of the
    faces, all others of the first half; uint8 (n, 3, S, S) on the CPU.
    """
    half = len(faces) // 2

    def of_batch(positions: range) -> dict[str, Tensor]:
        images = faces.images(range(positions.start - 1, positions.stop))
        z = faces.bundle.encode(images)
        back = faces.bundle.generate(z)
        count = max(0, min(len(positions), half - positions.start))
        mixed_positions = range(positions.start, positions.start + count)
        mixed = _mixes(faces, mixed_positions, images, z, back) if count else {}
        unmixed = {PHOTOGRAPHS: images[count + 1 :], FLOOR: back[count + 1 :]}
        return {name: stored(each) for name, each in (unmixed | mixed).items()}

    return _joined(faces.measured(len(faces), "training faces and mixes", of_batch))


def _mixes(faces: FacePairs, positions: range, images: Tensor, z: Tensor, back: Tensor) -> dict[str, Tensor]:
    """All mixes of the pairs at `positions`; images, latents and reconstructions begin with the face before them."""
    a, b = slice(1, len(positions) + 1), slice(len(positions))
    found = mixes.fused_and_means(faces.bundle, z[a], z[b], (back[a], back[b]))
    found |= mixes.of_photographs(images[a], images[b], mixes.landmark_pairs(faces, positions))
    return found | mixes.single_flips(faces.bundle, z[a], z[b])


def _on_cpu(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.cpu() for name, each in found.items()}


def _joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One after the other; the first has every name, the last ones need not."""
    return {name: torch.cat([each[name] for each in batches if name in each]) for name in batches[0]}


def published_lpips(device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS with AlexNet, images (B, 3, S, S) twice -> (B,); None where AlexNet's weights are not in torch's cache."""
    name = AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    if not (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file():
        return None
    net = LearnedPerceptualImagePatchSimilarity(net_type="alex", sync_on_compute=False).net.to(device)
    return lambda x, y: net(x, y).reshape(len(x))
