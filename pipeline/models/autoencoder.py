"""E and G as one module with one forward (docs/method.md, eq. 1), for every structure of elements."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config.schema import ModelConfig
from pipeline.models import latents, losses, pyramid
from pipeline.models.networks import Encoder, Generator, touched


class FusionOutput(NamedTuple):
    """What one forward of E and G gives for a batch."""

    reconstruction: Tensor
    """A' = G(E(A)), (B, 3, H, W) in [-1, 1]. B' is A' rolled by one."""
    fused: Tensor | None
    """C = G(Z_C), (B, 3, H, W) in [-1, 1]; None without a Lambda."""
    off_centre: Tensor | None
    """Of the encoder's method of that name, ()."""
    latent: Tensor | None = None
    """Z_A as D sees it, (B, c, h, w); None without a Lambda."""
    mixed: Tensor | None = None
    """Z_C as D sees it, (B, c, h, w)."""


class FusionAutoencoder(nn.Module):
    """E and G. ONE forward encodes, mixes and generates, so that one DDP forward meets one backward.

    B is the batch rolled by one position: every image is once A and once B, so E and G see it once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # sizes: channels of each element; without_position: so many first ones are the same in all rows and columns.
        channels = 16 * config.base_channels
        if config.structure == "pyramid":
            self.encoder: Encoder = pyramid.PyramidEncoder(config)
            self.generator: Generator = pyramid.PyramidGenerator(config)
            self.sizes, self.without_position = pyramid.element_sizes(channels), pyramid.STYLES
        else:
            self.encoder, self.generator = Encoder(config), Generator(config)
            self.sizes, self.without_position = latents.element_sizes(channels, config.elements), 0

    def forward(
        self, images: Tensor, lambda_: Tensor | None = None, noise: Tensor | None = None, draw: bool = True
    ) -> FusionOutput:
        """Reconstruct a batch, and fuse every image with the one before it.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            lambda_: (B, N) or (B, N, h, w); None: reconstruct only.
            noise: (B, C, h, w) for `with_noise` of the encoder.
            draw: False: mix latents, but draw no C.
        """
        z_a = self.encoder(images)
        off_centre = self.encoder.off_centre(z_a)
        if noise is not None:
            z_a = self.encoder.with_noise(z_a, noise)
        if lambda_ is None:
            return FusionOutput(self.generator(z_a), None, off_centre)
        mixed = self.mix(z_a, rolled(z_a), lambda_).to(z_a.dtype)
        drawn = self.generator(torch.cat([z_a, mixed]) if draw else z_a)
        reconstruction, fused = drawn.chunk(2) if draw else (drawn, None)
        return FusionOutput(reconstruction, fused, off_centre, *self._as_seen(z_a, mixed))

    def _as_seen(self, z_a: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """Both as G takes them in, each element divided by its RMS in Z_A: E cannot please D by smaller numbers."""
        of_a, of_c = ([losses.wide(part) for part in self.generator.elements(z)] for z in (z_a, mixed))
        scales = [(part.square().mean() + pyramid.NORM_FLOOR).sqrt() for part in of_a]

        def scaled(parts: list[Tensor]) -> Tensor:
            return torch.cat([part / scale for part, scale in zip(parts, scales, strict=True)], dim=1)

        return scaled(of_a), scaled(of_c)

    def mix(self, z_a: Tensor, z_b: Tensor, lambda_: Tensor) -> Tensor:
        """Z_C of eq. 1, `latents.mix` with this model's elements: (B, C, h, w) twice -> (B, C, h, w)."""
        return latents.mix(z_a, z_b, lambda_, self.sizes)

    def fuse_unchecked(self, z_a: Tensor, z_b: Tensor, lambda_: Tensor, mask: Tensor | None = None) -> Tensor:
        """C, for `Bundle.fuse`, which checks Lambda and mask: call that.

        Args:
            z_a, z_b: (B, C, h, w).
            lambda_: any of the four shapes of Lambda; with a mask it holds inside, and outside Lambda is 1.
            mask: (S, S) or (B, S, S) in [0, 1]: 1 inside, where B enters, 0 where A stays; None: everywhere.

        Returns:
            (B, 3, S, S) in [-1, 1].
        """
        if mask is None:
            images: Tensor = self.generator(self.mix(z_a, z_b, lambda_))
            return images
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
        weight = touched(mask, z_a.shape[-1])
        inside = lambda_ if lambda_.dim() > 2 else lambda_[..., None, None]
        limited = weight * inside + (1 - weight)
        if self.without_position and inside.shape[-3] > 1:  # these hold for the whole latent; G's features are masked
            whole = inside.expand_as(limited)[:, : self.without_position]
            limited = torch.cat([whole, limited[:, self.without_position :]], dim=1)
        return self.generator.generate_inside(z_a, self.mix(z_a, z_b, limited), mask)


def rolled(batch: Tensor) -> Tensor:
    """B's part of a batch whose images are A: the image one position before, around the end."""
    return batch.roll(1, dims=0)
