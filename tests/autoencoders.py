"""Small encoders and generators, and images for them."""

from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import ModelConfig
from pipeline.models.autoencoder import FusionAutoencoder

OURS = {"blocks": "residual", "norm": "none", "structure": "pyramid"}
WARPED = {**OURS, "warp": True, "preserve_norm": True}
RECIPES: list[dict[str, Any]] = [{}, OURS, WARPED]


def model(base_channels: int = 2, **settings: Any) -> FusionAutoencoder:
    torch.manual_seed(0)
    return FusionAutoencoder(ModelConfig(base_channels=base_channels, **settings))


def images(count: int = 4, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
