"""Encoder and generator whose elements leave and enter at several resolutions: the structure `pyramid`.

docs/method.md describes it: element 5 draws the layout and 4 the detail; 3 and 2 set their contrast, 1 the level.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.schema import STYLE_LAYERS, ModelConfig
from pipeline.models import blocks, losses
from pipeline.models.networks import AfterBlock, Encoder, Generator

STYLES = len(STYLE_LAYERS)
"""The first so many elements are style: the same in all rows and columns of the latent."""
LAYOUT_BLOCKS, LAYOUT_CELL = 2, 4
"""Blocks of G that draw the layout, and how wide one of its cells is on features of half the image's side."""
DEVIATION_FLOOR = 1e-4
"""Added to a variance before its root is taken."""


def element_sizes(channels: int) -> tuple[int, ...]:
    """Channels of each element. (1024,) -> (64, 64, 64, 624, 208).

    Elements 1 to 3, a few numbers without a position, get a sixteenth each, and 5, the layout, a quarter of the rest.
    """
    style = channels // 16
    layout = (channels - STYLES * style) // 4
    return (*[style] * STYLES, channels - STYLES * style - layout, layout)


def element_parts(sizes: tuple[int, ...], memory: bool) -> list[int]:
    """Channels of elements 1, 2, 3, of what 4 draws, what it remembers, what 5 draws, what it remembers.

    With a memory, 4 and 5 both end in a copy of the first eighth of each style: (64, 64, 64, 624, 208) -> (64, 64, 64,
    600, 24, 184, 24).
    """
    *styles, detail, layout = sizes
    remembered = STYLES * math.ceil(styles[0] / 8) if memory else 0
    return [*styles, detail - remembered, remembered, layout - remembered, remembered]


class Bands(NamedTuple):
    """Features (B, c, h, w) as three parts that add up to them: a pyramid of two steps (Burt and Adelson 1983)."""

    level: Tensor
    """Means over rows and columns, (B, c, 1, 1)."""
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
    return (along.T @ cells @ along).contiguous(memory_format=blocks.memory_format(cells))


def deviation(band: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, c, 1, 1): the root of its mean square; above 0."""
    return (losses.wide(band).square().mean(dim=(2, 3), keepdim=True) + DEVIATION_FLOOR).sqrt()


def first_channels(styles: list[Tensor], count: int) -> Tensor:
    """As many of each, together `count`: STYLES of (B, c, ...) -> (B, count, ...)."""
    return torch.cat([style[:, : count // STYLES] for style in styles], dim=1)


class PyramidEncoder(Encoder):
    """E whose elements 1 to 3 are measured on its first features and then taken out of them.

    Of the `Bands` of each channel element 1 gets the level, 2 the deviation of the detail, 3 that of the layout.
    Elements 4 and 5 are what the other blocks find in detail and layout, each divided by its deviation. With a
    refinement both end in a copy of the first channels of 1 to 3, which tells whose styles they belong to.
    """

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(self)
        channels = blocks.widths(config.base_channels)
        sizes = element_sizes(channels[-1])
        self.styles = nn.ModuleList(nn.Linear(channels[0], size) for size in sizes[:STYLES])
        *_, detail, self.remembered, layout, _ = element_parts(sizes, memory=config.refinement)
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


class PyramidGenerator(Generator):
    """G whose last features are put together from `Bands`, each drawn or set by its own elements.

    No element knows of another before that. A refinement, behind it, gets them all, and how far the styles
    differ from those that 4 and 5 remember: 0 where all are of one face, or all are mixed alike.
    """

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(self)
        channels = blocks.widths(config.base_channels)[::-1]
        self.parts = element_parts(element_sizes(channels[0]), memory=config.refinement)
        *styles, of_detail, self.remembered, of_layout, _ = self.parts
        kinds = (config.kernel_size, config.norm, config.blocks)
        self.styles = nn.ModuleList(nn.Linear(size, channels[-1]) for size in styles)
        self.layout = blocks.hidden_stack([of_layout, *channels[1 : 1 + LAYOUT_BLOCKS]], *kinds)
        self.layout.append(nn.Conv2d(channels[LAYOUT_BLOCKS], channels[-1], 1))
        self.body = blocks.up_stack([of_detail, *channels[1:]], *kinds)
        if config.refinement:
            self.refinement = blocks.Refinement(channels[-1], 2 * self.remembered, config.kernel_size, config.norm)

    def features(self, z: Tensor, after_block: AfterBlock) -> Tensor:
        *styles, detail, of_4, cells, of_5 = z.split(self.parts, dim=1)
        styles = [element.mean(dim=(2, 3), keepdim=True) for element in styles]
        level, of_detail, of_layout = (
            linear(element.flatten(1))[..., None, None] for linear, element in zip(self.styles, styles, strict=True)
        )
        for block in self.layout:
            cells = after_block(block(cells))
        *hidden, last, _ = self.body
        for block in hidden:
            detail = after_block(block(detail))
        mean = cells.mean(dim=(2, 3), keepdim=True)
        smooth = spread(mean + level + (1 + of_layout) * (cells - mean))
        x = smooth + (1 + of_detail) * bands(last(detail)).detail
        if self.remembered:
            own = first_channels(styles, self.remembered)
            x = self.refinement(x, torch.cat([own - of_4, own - of_5], dim=1))
        return after_block(x)

    def last_masked_side(self, image_size: int) -> int:
        return image_size // 2
