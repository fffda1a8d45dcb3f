"""Encoder E, generator G, and the two as one module with one forward, METHOD (1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import latents
from pipeline.config import STYLE_LAYERS, ModelConfig
from pipeline.models import blocks

STYLES = len(STYLE_LAYERS)
"""Elements, from 1, that are style where the structure is `modulation`."""
LAST_HIDDEN = blocks.BLOCKS - 2
"""Number, from 0, of the last block of G but the one that gives the image."""
MASKED_SIDES = (8, 16, 32)
"""Sides, in pixels, of the generator's features that a mask is applied to."""


class Encoder(nn.Module):
    """E: (B, 3, H, W) in [-1, 1] -> Z (B, C, H/32, W/32), C = 16 base_channels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.body = blocks.down_stack(config.base_channels, config.kernel_size, config.norm, config.blocks)

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.body(images)
        return z


class Modulation(nn.Module):
    """Sets level and contrast of G's last features, normalised image by image before (AdaIN, Huang and Belongie 2017).

    Of the last features element 1 sets the level, element 2 the contrast; element 3 sets both of those before them.
    """

    def __init__(self, sizes: tuple[int, ...], before: int, last: int) -> None:
        super().__init__()
        *styles, _, _ = sizes
        self.sizes = [*styles, sum(sizes[STYLES:])]
        self.level = nn.Linear(styles[0], last)
        self.contrast = nn.Linear(styles[1], last)
        self.coarse = nn.Linear(styles[2], 2 * before)

    def forward(self, place: int, features: Tensor, styles: list[Tensor]) -> Tensor:
        """(B, c, h, w) after block `place` -> the same shape."""
        if place == LAST_HIDDEN:
            level, contrast = self.level(styles[0]), self.contrast(styles[1])
        elif place == LAST_HIDDEN - 1:
            level, contrast = self.coarse(styles[2]).chunk(2, dim=1)
        else:
            return features
        modulated: Tensor = (
            functional.instance_norm(features) * (1 + contrast[..., None, None]) + level[..., None, None]
        )
        return modulated


class Generator(nn.Module):
    """G: Z (B, C, h, w) -> images (B, 3, 32h, 32w) in [-1, 1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = blocks.widths(config.base_channels)[::-1]
        self.modulation: Modulation | None = None
        if config.structure == "modulation":
            sizes = latents.element_sizes(channels[0], config.elements)
            self.modulation = Modulation(sizes, *channels[-2:])
            channels[0] = sum(sizes[STYLES:])
        self.body = blocks.up_stack(channels, config.kernel_size, config.norm, config.blocks)

    def forward(self, z: Tensor) -> Tensor:
        x, styles = self._split(z)
        for place, block in enumerate(self.body):
            x = self._modulated(place, block(x), styles)
        return x

    def _split(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the first block gets; and the style elements, (B, c) each, if they go another way."""
        if self.modulation is None:
            return z, []
        *styles, content = z.split(self.modulation.sizes, dim=1)
        return content, [style.mean(dim=(2, 3)) for style in styles]

    def _modulated(self, place: int, features: Tensor, styles: list[Tensor]) -> Tensor:
        return features if self.modulation is None else self.modulation(place, features, styles)

    def within(self, z_a: Tensor, z_c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A' = G(Z_A), and G(Z_C) held to A' outside of a region.

        After each block whose features are `MASKED_SIDES` wide, and after the last one that modulates them, those of C
        outside are replaced by those of A. What the blocks behind reach across the region's edge stays. The last time
        draws the edge, in shares of its cells; before it C keeps every cell that the region touches: kept in shares
        there too, little of B would be left in a small region.

        Args:
            z_a, z_c: (B, C, h, w).
            mask: (1, 1, S, S) or (B, 1, S, S) in [0, 1]. Where it is all 0 the two images have equal bits; where it is
                all 1 the second is G(Z_C), if BatchNorm is in eval mode.

        Returns:
            Two of (B, 3, S, S) in [-1, 1].
        """
        *hidden, output = self.body
        (a, styles_a), (c, styles_c) = self._split(z_a), self._split(z_c)
        for place, block in enumerate(hidden):
            a = self._modulated(place, block(a), styles_a)
            c = self._modulated(place, block(c), styles_c)
            side = a.shape[-1]
            at_end = block is hidden[-1]
            if side in MASKED_SIDES or (at_end and self.modulation is not None):
                last = at_end or (side == MASKED_SIDES[-1] and self.modulation is None)
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
        limited = weight * inside + (1 - weight)
        if self.generator.modulation is not None and inside.shape[-3] > 1:  # styles have no place: their features have
            limited = torch.cat([inside.expand_as(limited)[:, :STYLES], limited[:, STYLES:]], dim=1)
        z_c = self.mix(z_a, z_b, limited)
        return self.generator.within(z_a, z_c, mask)


def touched(mask: Tensor, side: int) -> Tensor:
    """Which cells of a grid a mask touches: (B, 1, S, S) in [0, 1] -> (B, 1, side, side), 0 or 1."""
    return functional.adaptive_max_pool2d(mask, side).ceil()


def rolled(batch: Tensor) -> Tensor:
    """B's part of a batch whose images are A: the image one position before, around the end."""
    return batch.roll(1, dims=0)
