"""Encoder E, generator G, and the two as one module with one forward, METHOD (1)."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import latents
from pipeline.config import ModelConfig
from pipeline.models import blocks

MASKED_SIDES = (8, 16, 32)
"""Sides, in pixels, of the generator's features that a mask is applied to."""


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
            blocks.up(inputs, outputs, config.kernel_size, "batch", nn.ReLU(inplace=True))
            for inputs, outputs in itertools.pairwise(channels)
        ]
        output = blocks.up(channels[-1], 3, config.kernel_size, "none", nn.Tanh())
        self.body = nn.Sequential(*hidden, output)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.body(z)
        return images

    def within(self, z_a: Tensor, z_c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A' = G(Z_A), and G(Z_C) held to A' outside of a region.

        After each block whose features are `MASKED_SIDES` wide, those of C outside are replaced by those of A. What
        the blocks after the last of these reach across the region's edge stays. That last one draws the edge, in
        shares of its cells; before it C keeps every cell that the region touches: kept in shares there too, little
        of B would be left in a small region.

        Args:
            z_a, z_c: (B, C, h, w).
            mask: (1, 1, S, S) or (B, 1, S, S) in [0, 1]. Where it is all 0 the two images have equal bits; where it is
                all 1 the second is G(Z_C), if BatchNorm is in eval mode.

        Returns:
            Two of (B, 3, S, S) in [-1, 1].
        """
        *hidden, output = self.body
        a, c = z_a, z_c
        for block in hidden:
            a, c = block(a), block(c)
            side = a.shape[-1]
            if side in MASKED_SIDES:
                last = side == MASKED_SIDES[-1] or block is hidden[-1]
                weight = functional.adaptive_avg_pool2d(mask, side) if last else touched(mask, side)
                c = weight * c + (1 - weight) * a
        return output(a), output(c)


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
        self.mix = latents.mix_bands if config.structure == "bands" else latents.mix

    def forward(self, images: Tensor, lambda_: Tensor | None = None) -> FusionOutput:
        """(B, 3, H, W) in [-1, 1] and Lambda (B, N) or (B, N, h, w), or None to reconstruct only."""
        z_a = self.encoder(images)
        if lambda_ is None:
            return FusionOutput(self.generator(z_a), None)
        z_c = self.mix(z_a, rolled(z_a), lambda_).to(z_a.dtype)
        reconstruction, fused = self.generator(torch.cat([z_a, z_c])).chunk(2)
        return FusionOutput(reconstruction, fused)

    def fuse_latents(self, z_a: Tensor, z_b: Tensor, lambda_: Tensor) -> Tensor:
        """C = G(Lambda o Z_A + (1 - Lambda) o Z_B): (B, C, h, w) twice and any shape of Lambda -> (B, 3, H, W)."""
        images: Tensor = self.generator(self.mix(z_a, z_b, lambda_))
        return images

    def fuse_region(self, z_a: Tensor, z_b: Tensor, lambda_: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A', and C whose Lambda is `lambda_` inside a region and 1 outside, on the latent and in the generator.

        Args:
            z_a, z_b: (B, C, h, w).
            lambda_: any of the four shapes of Lambda.
            mask: (S, S) or (B, S, S) in [0, 1]: 1 inside, where B enters, 0 where A stays.
        """
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
        weight = touched(mask, z_a.shape[-1])
        inside = lambda_ if lambda_.dim() > 2 else lambda_[..., None, None]
        z_c = self.mix(z_a, z_b, weight * inside + (1 - weight))
        return self.generator.within(z_a, z_c, mask)


def touched(mask: Tensor, side: int) -> Tensor:
    """Which cells of a grid a mask touches: (B, 1, S, S) in [0, 1] -> (B, 1, side, side), 0 or 1."""
    return functional.adaptive_max_pool2d(mask, side).ceil()


def rolled(batch: Tensor) -> Tensor:
    """B's part of a batch whose images are A: the image one position before, around the end."""
    return batch.roll(1, dims=0)
