"""What a bundle says of the faces it was trained on: where their landmarks are, and how well it reconstructs others."""

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.config.schema import Config
from pipeline.data.loading.loader import FaceImages
from pipeline.inference import align, landmarks
from pipeline.inference.bundle import Bundle
from pipeline.models import regions
from pipeline.models.autoencoder import FusionAutoencoder

FRAME_IMAGES, RECONSTRUCTED_IMAGES = 1000, 64
"""How many are looked at, evenly spread over their split."""
QUANTILE = 0.95
"""One held-out face in twenty loses more."""


def measured(config: Config, weights: dict[str, Tensor], data_hash: str) -> dict[str, Any]:
    """`frame` and `reconstruction` of a bundle's config.json, as far as the shards of its run are at hand.

    Args:
        weights: of E and G.
        data_hash: of the shards it was trained on; other shards in their place are not measured.

    Returns:
        frame: mean landmarks of the training images, name -> [x, y] in pixels of the square picture.
        reconstruction: the `QUANTILE` of what held-out images lose in A' (`align.lost`).
    """
    found: dict[str, Any] = {}
    try:
        train = FaceImages(config.shards_dir / "train", config.data)
        if train.content_hash != data_hash:
            return found
        if frame := _mean_landmarks(train):
            found["frame"] = frame
        test = FaceImages(config.shards_dir / "test", config.data)
        error = _reconstruction(config, weights, test)
        if 0 < error < math.inf:
            found["reconstruction"] = error
    except UserError:  # not at hand, or damaged: a bundle is as good without
        pass
    return found


def _mean_landmarks(train: FaceImages) -> dict[str, list[float]] | None:
    """None where no image has its landmarks."""
    config, known = train.config, []
    for index in _spread(len(train), FRAME_IMAGES):
        points = landmarks.known_of_sample(train.reader.metadata(index), config.image_size, config.crop)
        if points is not None:
            known.append([points[name] for name in regions.POINTS])
    if not known:
        return None
    mean = torch.tensor(known, dtype=torch.float64).mean(dim=0)
    return {name: [round(float(x), 2) for x in point] for name, point in zip(regions.POINTS, mean, strict=True)}


def _reconstruction(config: Config, weights: dict[str, Tensor], test: FaceImages) -> float:
    model = FusionAutoencoder(config.model)
    model.load_state_dict(weights)
    bundle = Bundle(config, model.eval())
    lost = [align.lost(bundle, test.load([index])) for index in _spread(len(test), RECONSTRUCTED_IMAGES)]
    return float(torch.cat(lost).quantile(QUANTILE))


def _spread(length: int, count: int) -> list[int]:
    """At most `count` of the numbers below `length`, evenly spread."""
    count = min(length, count)
    return [number * length // count for number in range(count)]
