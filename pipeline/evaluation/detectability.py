"""Detectability of mixes: how well a small classifier, trained afresh, tells pictures between two faces from faces.

0.5: a fused face is as much a face as a reconstruction. The decoder is the same on both sides, so its softness cancels
out, and no network of the losses is involved.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data import images
from pipeline.measures.effects import Array

EPOCHS, BATCH = 12, 64
"""Passes over the training pictures, and pictures per step."""
SEEDS = 3
"""Classifiers whose results are averaged for C at lambda = 0.5."""
MOST_PIXELS = 128
"""Larger pictures are reduced to this side."""


class Classifier(nn.Sequential):
    """(B, 3, S, S) in [-1, 1] -> (B,): above 0 for mixed ones. Kept this small: a large one tells anything."""

    def __init__(self) -> None:
        blocks = []
        for inputs, outputs in ((3, 24), (24, 48), (48, 96)):
            blocks += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(384, 1))


def stored(pictures: Tensor) -> Tensor:
    """(B, 3, S, S) in [-1, 1] -> what is kept of them until all are there: uint8 on the CPU, at most MOST_PIXELS."""
    if pictures.shape[-1] > MOST_PIXELS:
        pictures = functional.adaptive_avg_pool2d(pictures, MOST_PIXELS)
    return images.to_uint8(pictures).cpu()


def told_apart(faces: tuple[Tensor, Tensor], mixed: tuple[Tensor, Tensor], seed: int, device: torch.device) -> Array:
    """Of every mixed test picture, the share of test faces that look less mixed; its mean is the AUC.

    Args:
        faces: unmixed pictures for training and for testing, uint8 (n, 3, S, S).
        mixed: mixed ones of other faces.

    Returns:
        (n,) of the mixed test pictures, by a classifier that `seed` determines.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        classifier = trained(torch.cat([faces[0], mixed[0]]), len(faces[0]), device)
    of_faces, of_mixed = (scores(classifier, pictures, device) for pictures in (faces[1], mixed[1]))
    ordered = np.sort(of_faces)
    below, not_above = np.searchsorted(ordered, of_mixed), np.searchsorted(ordered, of_mixed, "right")
    placed: Array = (below + not_above) / (2 * len(ordered))
    return placed


def trained(pictures: Tensor, unmixed: int, device: torch.device) -> Classifier:
    """A classifier that tells the first `unmixed` of the pictures from the others; batches are mirrored at random."""
    labels = (torch.arange(len(pictures)) >= unmixed).float().to(device)
    classifier = Classifier().to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), 1e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(pictures)).split(BATCH):
            batch = images.normalise(pictures[chosen].to(device)).contiguous(memory_format=torch.channels_last)
            batch = batch.flip(-1) if torch.rand(()) < 0.5 else batch
            loss = functional.binary_cross_entropy_with_logits(classifier(batch).squeeze(1), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    classifier.eval()
    return classifier


@torch.no_grad()
def scores(classifier: Classifier, pictures: Tensor, device: torch.device) -> Array:
    """(n,) for uint8 (n, 3, S, S)."""
    batches = (images.normalise(batch.to(device)) for batch in pictures.split(BATCH))
    found: Array = torch.cat([classifier(batch).squeeze(1) for batch in batches]).double().cpu().numpy()
    return found
