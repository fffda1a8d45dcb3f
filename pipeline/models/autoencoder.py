"""Encoder E, generator G, and the two as one module with one forward, METHOD (1)."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline import latents
from pipeline.config import ModelConfig
from pipeline.models import blocks


class Encoder(nn.Module):
    """E: (B, 3, H, W) in [-1, 1] -> Z (B, C, H/32, W/32), C = 16 base_channels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.body = blocks.down_stack(config.base_channels, config.kernel_size, "batch")

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.body(images)
        return z


class Generator(nn.Module):
    """G: Z (B, C, h, w) -> images (B, 3, 32h, 32w) in [-1, 1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = blocks.widths(config.base_channels)[::-1]
        hidden = [
            blocks.up(inputs, outputs, config.kernel_size, "batch", nn.ReLU())
            for inputs, outputs in itertools.pairwise(channels)
        ]
        output = blocks.up(channels[-1], 3, config.kernel_size, "none", nn.Tanh())
        self.body = nn.Sequential(*hidden, output)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.body(z)
        return images


class FusionOutput(NamedTuple):
    """What one forward of E and G gives for a batch."""

    reconstruction: Tensor
    """A' = G(E(A)), (B, 3, H, W) in [-1, 1]. B' is A' rolled by one."""
    fused: Tensor | None
    """C = G(Z_C), (B, 3, H, W) in [-1, 1]; None without a Lambda."""


class FusionAutoencoder(nn.Module):
    """E and G. ONE forward encodes, mixes and generates, so that one DDP forward meets one backward.

    B is the batch rolled by one position: every image is once A and once B, so E and G see it once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.generator = Generator(config)

    def forward(self, images: Tensor, lambda_: Tensor | None = None) -> FusionOutput:
        """(B, 3, H, W) in [-1, 1] and Lambda (B, N) or (B, N, h, w), or None to reconstruct only."""
        z_a = self.encoder(images)
        if lambda_ is None:
            return FusionOutput(self.generator(z_a), None)
        z_c = latents.mix(z_a, rolled(z_a), lambda_).to(z_a.dtype)
        reconstruction, fused = self.generator(torch.cat([z_a, z_c])).chunk(2)
        return FusionOutput(reconstruction, fused)

    def fuse_latents(self, z_a: Tensor, z_b: Tensor, lambda_: Tensor) -> Tensor:
        """C = G(Lambda o Z_A + (1 - Lambda) o Z_B): (B, C, h, w) twice and any shape of Lambda -> (B, 3, H, W)."""
        images: Tensor = self.generator(latents.mix(z_a, z_b, lambda_))
        return images


def rolled(batch: Tensor) -> Tensor:
    """B's part of a batch whose images are A: the image one position before, around the end."""
    return batch.roll(1, dims=0)
