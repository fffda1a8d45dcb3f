"""The paper's encoder E and generator G; and G within a region."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.schema import ModelConfig
from pipeline.models import blocks, losses

MASKED_SIDES = (8, 16, 32)
"""Sides, in pixels, of the generator's features that a mask is applied to."""

AfterBlock = Callable[[Tensor], Tensor]
"""Called with the features that a block of G gives; returns the features to go on with."""


class Encoder(nn.Module):
    """E: (B, 3, H, W) in [-1, 1] -> Z (B, C, H/32, W/32), C = 16 base_channels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = blocks.widths(config.base_channels)
        self.body = blocks.down_stack(channels, config.kernel_size, config.norm, config.blocks)

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.body(images)
        return z

    def with_noise(self, z: Tensor, noise: Tensor) -> Tensor:
        """Z with noise in units of its RMS; both (B, C, h, w)."""
        return z + losses.wide(z).square().mean().sqrt().to(z.dtype) * noise

    def off_centre(self, z: Tensor) -> Tensor | None:
        """How far the latents' mean is from 0, (); None where it may be anything."""
        return None


class Generator(nn.Module):
    """G: Z (B, C, h, w) -> images (B, 3, 32h, 32w) in [-1, 1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = blocks.widths(config.base_channels)[::-1]
        self.body = blocks.up_stack(channels, config.kernel_size, config.norm, config.blocks)

    def forward(self, z: Tensor) -> Tensor:
        return self.picture(self.features(z, lambda x: x))

    def elements(self, z: Tensor) -> list[Tensor]:
        """Z as G takes it in: parts of it whose scales differ, (B, c, h, w) each."""
        return [z]

    def picture(self, features: Tensor) -> Tensor:
        """The last features (B, c, S/2, S/2) -> images (B, 3, S, S) in [-1, 1]."""
        images: Tensor = self.body[-1](features)
        return images

    def features(self, z: Tensor, after_block: AfterBlock) -> Tensor:
        """The features, half the image's side, of which the last block makes the image."""
        *hidden, _ = self.body
        for block in hidden:
            z = after_block(block(z))
        return z

    def last_masked_side(self, image_size: int) -> int:
        """The side of the last features that a mask is applied to."""
        return min(image_size // 2, MASKED_SIDES[-1])

    def generate_inside(self, z_a: Tensor, z_c: Tensor, mask: Tensor) -> Tensor:
        """G(Z_C) inside a region, kept close to A' = G(Z_A) outside of it.

        Where features are `MASKED_SIDES` wide, and where they are the last that a mask is applied to, those of C
        outside are replaced by those of A. What later blocks carry across the region's edge stays. Only the last mask
        blends the cells on the edge, by the share that the region covers; the masks before keep every cell of C that
        the region touches. If these blended too, little of B would be left in a small region.

        Args:
            z_a, z_c: (B, C, h, w).
            mask: (1, 1, S, S) or (B, 1, S, S) in [0, 1].

        Returns:
            (B, 3, S, S) in [-1, 1]: equal bits to A' where the mask is 0 everywhere and, if BatchNorm is in eval mode,
            to G(Z_C) where it is 1 everywhere.
        """
        last, of_a = self.last_masked_side(mask.shape[-1]), list[Tensor]()

        def remember(features: Tensor) -> Tensor:
            of_a.append(features)
            return features

        def limit(features: Tensor) -> Tensor:
            other, side = of_a.pop(0), features.shape[-1]
            if side != last and side not in MASKED_SIDES:
                return features
            weight = functional.adaptive_avg_pool2d(mask, side) if side == last else touched(mask, side)
            return weight * features + (1 - weight) * other

        self.features(z_a, remember)
        return self.picture(self.features(z_c, limit))


def touched(mask: Tensor, side: int) -> Tensor:
    """Which cells of a grid a mask touches: (B, 1, S, S) in [0, 1] -> (B, 1, side, side), 0 or 1; side divides S."""
    return functional.max_pool2d(mask, mask.shape[-1] // side).ceil()
