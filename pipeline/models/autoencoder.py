"""Encoder E, generator G, and the two as one module with one forward, METHOD (1)."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.schema import STYLE_LAYERS, ModelConfig
from pipeline.models import blocks, latents, losses

STYLES = len(STYLE_LAYERS)
"""Elements, from 1, that are style where the structure is `pyramid`."""
MASKED_SIDES = (8, 16, 32)
"""Sides, in pixels, of the generator's features that a mask is applied to."""
LAYOUT_BLOCKS, LAYOUT_CELL = 2, 4
"""A pyramid's layout: blocks of G that give it, and how wide a cell of it is on features of half the image's side."""
DEVIATION_FLOOR = 1e-4
"""Added to a variance before its root is taken."""

Held = Callable[[Tensor], Tensor]
"""Given features of the generator, those to go on with."""


class Encoder(nn.Module):
    """E: (B, 3, H, W) in [-1, 1] -> Z (B, C, H/32, W/32), C = 16 base_channels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = blocks.widths(config.base_channels)
        self.body = blocks.down_stack(channels, config.kernel_size, config.norm, config.blocks)

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.body(images)
        return z


class Generator(nn.Module):
    """G: Z (B, C, h, w) -> images (B, 3, 32h, 32w) in [-1, 1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = blocks.widths(config.base_channels)[::-1]
        self.body = blocks.up_stack(channels, config.kernel_size, config.norm, config.blocks)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.body[-1](self.features(z, lambda x: x))
        return images

    def features(self, z: Tensor, held: Held) -> Tensor:
        """What the last block makes an image of, half its side; `held` is given the features of every stage."""
        *hidden, _ = self.body
        for block in hidden:
            z = held(block(z))
        return z

    def last_held(self, image_size: int) -> int:
        """The side of the last features that a mask is applied to."""
        return min(image_size // 2, MASKED_SIDES[-1])

    def within(self, z_a: Tensor, z_c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A' = G(Z_A), and G(Z_C) held to A' outside of a region.

        Where features are `MASKED_SIDES` wide, and where they are the last that a mask is applied to, those of C
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
        last, seen = self.last_held(mask.shape[-1]), deque[Tensor]()

        def noted(a: Tensor) -> Tensor:
            seen.append(a)
            return a

        def limited(c: Tensor) -> Tensor:
            a, side = seen.popleft(), c.shape[-1]
            if side != last and side not in MASKED_SIDES:
                return c
            weight = functional.adaptive_avg_pool2d(mask, side) if side == last else touched(mask, side)
            return weight * c + (1 - weight) * a

        a, c = self.features(z_a, noted), self.features(z_c, limited)
        return self.body[-1](a), self.body[-1](c)


class Bands(NamedTuple):
    """Features (B, c, h, w) as three parts that add up to them: a pyramid of two steps (Burt and Adelson 1983)."""

    level: Tensor
    """Means over places, (B, c, 1, 1)."""
    layout: Tensor
    """What means over cells add to that, spread smoothly; (B, c, h, w)."""
    detail: Tensor
    """The rest, (B, c, h, w)."""


def bands(features: Tensor) -> Bands:
    """(B, c, h, w) -> its parts; h = w, and a multiple of `LAYOUT_CELL`."""
    level = features.mean(dim=(2, 3), keepdim=True)
    smooth = spread(functional.avg_pool2d(features, LAYOUT_CELL))
    return Bands(level, smooth - level, features - smooth)


def spread(cells: Tensor) -> Tensor:
    """Bilinear interpolation, (B, c, n, n) -> (B, c, 4n, 4n); as products, which a GPU repeats bit for bit."""
    side = cells.shape[-1]
    unit = torch.eye(side, dtype=cells.dtype, device=cells.device)[None]
    along = functional.interpolate(unit, scale_factor=LAYOUT_CELL, mode="linear")[0]  # (n, 4n)
    if blocks.channels_last(cells):
        down = along.T @ cells.movedim(1, -1).flatten(2)  # (B, 4n, n c)
        both: Tensor = along.T @ down.unflatten(2, (cells.shape[-1], -1))
        return both.movedim(-1, 1)
    return along.T @ cells @ along


class PyramidEncoder(Encoder):
    """E whose elements 1 to 3 are level and contrasts of its first features, which go on without them (`pyramid`).

    Of the `Bands` of each channel element 1 gets the level, 2 the deviation of the detail, 3 that of the layout.
    Elements 4 and 5 are what the other blocks find in detail and layout, both divided by their deviation. For a
    refinement each ends in a copy of the first channels of 1 to 3, by which it knows whose they were.
    """

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(self)
        channels = blocks.widths(config.base_channels)
        sizes = latents.pyramid_sizes(channels[-1])
        self.styles = nn.ModuleList(nn.Linear(channels[0], size) for size in sizes[:STYLES])
        *_, detail, self.remembered, layout, _ = latents.pyramid_parts(sizes, memory=config.refinement)
        self.drawing = [detail, layout]
        channels[-1] = sum(self.drawing)
        self.body = blocks.down_stack(channels, config.kernel_size, config.norm, config.blocks)

    def forward(self, images: Tensor) -> Tensor:
        first, *others = self.body
        level, layout, detail = bands(first(images))
        of_detail, of_layout = deviation(detail), deviation(layout)
        x = detail / of_detail + layout / of_layout
        for block in others:
            x = block(x)
        measured = zip(self.styles, (level, of_detail, of_layout), strict=True)
        styles = [style(values.flatten(1))[..., None, None].expand(-1, -1, *x.shape[2:]) for style, values in measured]
        memory = first_channels(styles, self.remembered)
        detail, layout = x.split(self.drawing, dim=1)
        return torch.cat([*styles, detail, memory, layout, memory], dim=1)


def first_channels(styles: list[Tensor], count: int) -> Tensor:
    """As many of each, together `count`: STYLES of (B, c, ...) -> (B, count, ...)."""
    return torch.cat([style[:, : count // STYLES] for style in styles], dim=1)


def deviation(band: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, c, 1, 1): the root of its mean square; above 0."""
    return (losses.wide(band).square().mean(dim=(2, 3), keepdim=True) + DEVIATION_FLOOR).sqrt()


class PyramidGenerator(Generator):
    """G whose elements enter at several resolutions (`pyramid`): the last features are put together from bands.

    Element 5 draws the layout and 4 the detail; 3 and 2 set the contrast of these, 1 the level. None knows of another
    before that; a refinement, behind it, sees them all, and is told how far 1 to 3 are from what 4 and 5 remember: 0
    where all are of one face, or all mixed alike.
    """

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(self)
        channels = blocks.widths(config.base_channels)[::-1]
        self.parts = latents.pyramid_parts(latents.pyramid_sizes(channels[0]), memory=config.refinement)
        *styles, of_detail, self.remembered, of_layout, _ = self.parts
        kinds = (config.kernel_size, config.norm, config.blocks)
        self.styles = nn.ModuleList(nn.Linear(size, channels[-1]) for size in styles)
        self.layout = blocks.hidden_stack([of_layout, *channels[1 : 1 + LAYOUT_BLOCKS]], *kinds)
        self.layout.append(nn.Conv2d(channels[LAYOUT_BLOCKS], channels[-1], 1))
        self.body = blocks.up_stack([of_detail, *channels[1:]], *kinds)
        if config.refinement:
            self.refinement = blocks.Refinement(channels[-1], 2 * self.remembered, config.kernel_size, config.norm)

    def features(self, z: Tensor, held: Held) -> Tensor:
        *by_style, detail, of_4, cells, of_5 = z.split(self.parts, dim=1)
        by_style = [element.mean(dim=(2, 3), keepdim=True) for element in by_style]
        level, of_detail, of_layout = (
            style(element.flatten(1))[..., None, None] for style, element in zip(self.styles, by_style, strict=True)
        )
        for block in self.layout:
            cells = held(block(cells))
        *hidden, last, _ = self.body
        for block in hidden:
            detail = held(block(detail))
        mean = cells.mean(dim=(2, 3), keepdim=True)
        smooth = spread(mean + level + (1 + of_layout) * (cells - mean))
        x = smooth + (1 + of_detail) * bands(last(detail)).detail
        if self.remembered:
            own = first_channels(by_style, self.remembered)
            x = self.refinement(x, torch.cat([own - of_4, own - of_5], dim=1))
        return held(x)

    def last_held(self, image_size: int) -> int:
        return image_size // 2


class FusionOutput(NamedTuple):
    """What one forward of E and G gives for a batch."""

    reconstruction: Tensor
    """A' = G(E(A)), (B, 3, H, W) in [-1, 1]. B' is A' rolled by one."""
    fused: Tensor | None
    """C = G(Z_C), (B, 3, H, W) in [-1, 1]; None without a Lambda."""
    flipped: Tensor | None = None
    """C of the first pairs, each element alone flipped from A to B, pair by pair: (pairs x N, 3, H, W), or None."""


class FusionAutoencoder(nn.Module):
    """E and G. ONE forward encodes, mixes and generates, so that one DDP forward meets one backward.

    B is the batch rolled by one position: every image is once A and once B, so E and G see it once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        pyramid = config.structure == "pyramid"
        self.encoder = PyramidEncoder(config) if pyramid else Encoder(config)
        self.generator = PyramidGenerator(config) if pyramid else Generator(config)
        self.placeless = STYLES if pyramid else 0
        channels = 16 * config.base_channels
        self.sizes = latents.pyramid_sizes(channels) if pyramid else latents.element_sizes(channels, config.elements)
        """Channels of each element; under `bands`, which are no groups of channels, as if they were."""
        self.mix = latents.mix_bands if config.structure == "bands" else partial(latents.mix, sizes=self.sizes)

    def forward(self, images: Tensor, lambda_: Tensor | None = None, flipped_pairs: int = 0) -> FusionOutput:
        """(B, 3, H, W) in [-1, 1] and Lambda (B, N) or (B, N, h, w), or None to reconstruct only.

        Of the first `flipped_pairs` pairs each element is also flipped alone.
        """
        z_a = self.encoder(images)
        if lambda_ is None:
            return FusionOutput(self.generator(z_a), None)
        z_b, count = rolled(z_a), len(z_a)
        mixed = [self.mix(z_a, z_b, lambda_)]
        if flipped_pairs:
            elements = len(self.sizes)
            one_flipped = 1 - torch.eye(elements, dtype=lambda_.dtype, device=z_a.device)
            of_a, of_b = (z[:flipped_pairs].repeat_interleave(elements, dim=0) for z in (z_a, z_b))
            mixed.append(self.mix(of_a, of_b, one_flipped.repeat(flipped_pairs, 1)))
        images = self.generator(torch.cat([z_a, *(z.to(z_a.dtype) for z in mixed)]))
        reconstruction, fused, flipped = images.split([count, count, len(images) - 2 * count])
        return FusionOutput(reconstruction, fused, flipped if flipped_pairs else None)

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
        if self.placeless and inside.shape[-3] > 1:  # their features have a place
            limited = torch.cat([inside.expand_as(limited)[:, : self.placeless], limited[:, self.placeless :]], dim=1)
        z_c = self.mix(z_a, z_b, limited)
        return self.generator.within(z_a, z_c, mask)


def touched(mask: Tensor, side: int) -> Tensor:
    """Which cells of a grid a mask touches: (B, 1, S, S) in [0, 1] -> (B, 1, side, side), 0 or 1."""
    return functional.adaptive_max_pool2d(mask, side).ceil()


def rolled(batch: Tensor) -> Tensor:
    """B's part of a batch whose images are A: the image one position before, around the end."""
    return batch.roll(1, dims=0)
