"""Encoder and generator whose elements leave and enter at several resolutions: the structure `pyramid`.

docs/method.md describes it: element 5 draws the layout and 4 the detail; 3 and 2 set their contrast, 1 the level. With
a warp, 5 also says where every pixel of the drawn face is moved from: mixing it moves one face into the other.
"""

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
REACH = 0.2
"""How far a warp moves a pixel at most, in shares of the picture's side."""
WARP_GAIN = 0.03
"""Factor of a warp's convolution. Adam moves all its weights at once, by the learning rate. At 1, and at 128 x 128,
every pixel was moved as far as it can be within 100 steps, and stayed there, as tanh has no slope left."""
MOST_STRETCHED = 1.5
"""How many times its length a mixed element gets at most; two that have nothing in common need the root of 2."""
NORM_FLOOR = 1e-6
"""Added to a mean square before its root is taken."""
DEVIATION_FLOOR = 1e-4
"""Added to a variance before its root is taken."""


def element_sizes(channels: int) -> tuple[int, ...]:
    """Channels of each element. (1024,) -> (64, 64, 64, 624, 208).

    Elements 1 to 3, a few numbers without a position, get a sixteenth each, and 5, the layout, a quarter of the rest.
    """
    style = channels // 16
    layout = (channels - STYLES * style) // 4
    return (*[style] * STYLES, channels - STYLES * style - layout, layout)


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
    smooth = spread(functional.avg_pool2d(features, LAYOUT_CELL), LAYOUT_CELL)
    return Bands(level, smooth - level, features - smooth)


def spread(cells: Tensor, times: int) -> Tensor:
    """Bilinear interpolation, (B, c, n, n) -> (B, c, m, m), m = times n; as products: a GPU repeats their bits."""
    side = cells.shape[-1]
    unit = torch.eye(side, dtype=cells.dtype, device=cells.device)[None]
    along = functional.interpolate(unit, scale_factor=times, mode="linear")[0]  # (n, times n)
    return (along.T @ cells @ along).contiguous(memory_format=blocks.memory_format(cells))


def warped(images: Tensor, moves: Tensor) -> Tensor:
    """Images whose every pixel is taken from where `moves` says, bilinearly; from the border, if that is outside.

    The four neighbours are looked up as embeddings are: their gradient, too, is one that a GPU repeats bit for bit.

    Args:
        images: (B, C, S, S).
        moves: (B, 2, S, S), across and down, in shares of S.
    """
    count, channels, side, _ = images.shape
    precise = torch.promote_types(moves.dtype, torch.float32)  # from 64 on bf16 has halves only
    along = torch.arange(side, device=images.device, dtype=precise)
    x = (along + side * moves[:, 0]).clamp(0, side - 1)
    y = (along[:, None] + side * moves[:, 1]).clamp(0, side - 1)
    left, top = x.detach().floor().clamp(max=side - 2), y.detach().floor().clamp(max=side - 2)
    right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
    first = (torch.arange(count, device=images.device) * side * side)[:, None, None]
    corner = first + top.long() * side + left.long()  # of the upper left neighbour, in `pixels`
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    upper, lower = (
        torch.lerp(functional.embedding(at, pixels), functional.embedding(at + 1, pixels), right_share.to(pixels.dtype))
        for at in (corner, corner + side)
    )
    mixed = torch.lerp(upper, lower, lower_share.to(pixels.dtype)).permute(0, 3, 1, 2)
    return mixed.contiguous(memory_format=blocks.memory_format(images))


def deviation(band: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, c, 1, 1): the root of its mean square; above 0."""
    return (losses.wide(band).square().mean(dim=(2, 3), keepdim=True) + DEVIATION_FLOOR).sqrt()


def norm(element: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, 1, 1, 1): the root of its mean square; above 0."""
    return (losses.wide(element).square().mean(dim=(1, 2, 3), keepdim=True) + NORM_FLOOR).sqrt().to(element.dtype)


def with_norm(element: Tensor) -> Tensor:
    """An element and, as one more channel, its norm: (B, c, h, w) -> (B, c + 1, h, w)."""
    return torch.cat([element, norm(element).expand(-1, -1, *element.shape[2:])], dim=1)


def at_its_norm(element: Tensor) -> Tensor:
    """Inverse of `with_norm`, which brings a mix back to its norm: (B, c + 1, h, w) -> (B, c, h, w).

    The mean of two faces' deviations from the mean face is shorter than either: a paler, more average face. Its last
    channel has the mean of their norms. What nearly cancels, such as light and dark, stays short.
    """
    inner, wanted = element.tensor_split([-1], dim=1)
    return inner * (wanted.mean(dim=(2, 3), keepdim=True) / norm(inner)).clamp(max=MOST_STRETCHED)


class PyramidEncoder(Encoder):
    """E whose elements 1 to 3 are measured on its first features and then taken out of them.

    Of the `Bands` of each channel element 1 gets the level, 2 the deviation of the detail, 3 that of the layout.
    Elements 4 and 5 are what the other blocks find in detail and layout, each divided by its deviation. Where norms are
    preserved, the last channel of each element is its norm, and its mean over faces is kept at 0 (`off_centre`).
    """

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(self)
        channels = blocks.widths(config.base_channels)
        self.sizes, self.preserve_norm = element_sizes(channels[-1]), config.preserve_norm
        self.inner = [size - config.preserve_norm for size in self.sizes]
        self.styles = nn.ModuleList(nn.Linear(channels[0], size) for size in self.inner[:STYLES])
        channels[-1] = sum(self.inner[STYLES:])
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
        elements = [*styles, *x.split(self.inner[STYLES:], dim=1)]
        return torch.cat([*map(with_norm, elements)] if self.preserve_norm else elements, dim=1)

    def with_noise(self, z: Tensor, noise: Tensor) -> Tensor:
        """Noise on elements 4 and 5, in units of their norm, which itself stays."""
        noisy = list(z.split(self.sizes, dim=1))
        for index, of_element in list(enumerate(noise.split(self.sizes, dim=1)))[STYLES:]:
            inner, its_norm = noisy[index].tensor_split([self.inner[index]], dim=1)
            noisy[index] = torch.cat([inner + norm(inner) * of_element[:, : self.inner[index]], its_norm], dim=1)
        return torch.cat(noisy, dim=1)

    def off_centre(self, z: Tensor) -> Tensor | None:
        """The square of the latents' mean over faces, (), as half of the batch times the other half.

        The square of one mean would also hold the spread of the faces, which is not to shrink.
        """
        if not self.preserve_norm:
            return None
        inner = losses.wide(torch.cat([element[:, :-1] for element in z.split(self.sizes, dim=1)], dim=1))
        one, other = (half.mean(dim=0) for half in inner.tensor_split(2))
        return (one * other).mean()


class PyramidGenerator(Generator):
    """G whose last features are put together from `Bands`, each drawn or set by its own elements.

    No element knows of another before that.
    """

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(self)
        channels = blocks.widths(config.base_channels)[::-1]
        self.sizes, self.preserve_norm = element_sizes(channels[0]), config.preserve_norm
        *styles, of_detail, of_layout = (size - config.preserve_norm for size in self.sizes)
        kinds = (config.kernel_size, config.norm, config.blocks)
        self.styles = nn.ModuleList(nn.Linear(size, channels[-1]) for size in styles)
        self.layout = blocks.hidden_stack([of_layout, *channels[1 : 1 + LAYOUT_BLOCKS]], *kinds)
        self.layout.append(nn.Conv2d(channels[LAYOUT_BLOCKS], channels[-1], 1))
        self.warp = nn.Conv2d(channels[LAYOUT_BLOCKS], 2, 3, padding=1) if config.warp else None
        for parameter in self.warp.parameters() if self.warp else ():
            nn.init.zeros_(parameter)  # a new warp moves nothing
        self.body = blocks.up_stack([of_detail, *channels[1:]], *kinds)

    def elements(self, z: Tensor) -> list[Tensor]:
        elements = list(z.split(self.sizes, dim=1))
        return list(map(at_its_norm, elements)) if self.preserve_norm else elements

    def features(self, z: Tensor, after_block: AfterBlock) -> Tensor:
        *styles, detail, cells = self.elements(z)
        styles = [element.mean(dim=(2, 3), keepdim=True) for element in styles]
        level, of_detail, of_layout = (
            linear(element.flatten(1))[..., None, None] for linear, element in zip(self.styles, styles, strict=True)
        )
        *drawing, last_of_layout = self.layout
        for block in drawing:
            cells = after_block(block(cells))
        moves = []
        if self.warp is not None:  # even moves: the mean over 2 x 2 cells
            even = WARP_GAIN * functional.avg_pool2d(self.warp(cells), 2)
            moves.append(spread(REACH * torch.tanh(even), 2 * LAYOUT_CELL))
        cells = after_block(last_of_layout(cells))
        *hidden, last, _ = self.body
        for block in hidden:
            detail = after_block(block(detail))
        mean = cells.mean(dim=(2, 3), keepdim=True)
        smooth = spread(mean + level + (1 + of_layout) * (cells - mean), LAYOUT_CELL)
        drawn = smooth + (1 + of_detail) * bands(last(detail)).detail
        return after_block(torch.cat([drawn, *moves], dim=1))

    def picture(self, features: Tensor) -> Tensor:
        if self.warp is None:
            return super().picture(features)
        drawn, moves = features.tensor_split([-2], dim=1)
        return warped(super().picture(drawn), spread(moves, 2))

    def last_masked_side(self, image_size: int) -> int:
        return image_size // 2
