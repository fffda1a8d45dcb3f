"""The blocks of E, G and D: strided convolution, normalisation, activation."""

import itertools

from torch import nn

from pipeline.config import Norm

BLOCKS = 5
"""Every network halves or doubles the resolution five times."""


def widths(base_channels: int) -> list[int]:
    """Channels of the five blocks: 64, 128, 256, 512, 1024 for a base of 64."""
    return [base_channels * 2**i for i in range(BLOCKS)]


def _norm(kind: Norm, channels: int) -> list[nn.Module]:
    if kind == "none":
        return []
    return [nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(1, channels)]


def down(inputs: int, outputs: int, kernel_size: int, norm: Norm) -> nn.Sequential:
    """Half the resolution: convolution, normalisation, LeakyReLU(0.2). (B, in, H, W) -> (B, out, H/2, W/2)."""
    padding = (kernel_size - 1) // 2
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride=2, padding=padding, bias=norm == "none")
    return nn.Sequential(convolution, *_norm(norm, outputs), nn.LeakyReLU(0.2, inplace=True))


def up(inputs: int, outputs: int, kernel_size: int, norm: Norm, activation: nn.Module) -> nn.Sequential:
    """Twice the resolution: transposed convolution, normalisation, activation. (B, in, H, W) -> (B, out, 2H, 2W)."""
    padding, odd = (kernel_size - 1) // 2, kernel_size % 2
    convolution = nn.ConvTranspose2d(
        inputs, outputs, kernel_size, stride=2, padding=padding, output_padding=odd, bias=norm == "none"
    )
    return nn.Sequential(convolution, *_norm(norm, outputs), activation)


def down_stack(base_channels: int, kernel_size: int, norm: Norm) -> nn.Sequential:
    """The five blocks of E and of D; the first has no normalisation. (B, 3, H, W) -> (B, 16 base, H/32, W/32)."""
    pairs = itertools.pairwise([3, *widths(base_channels)])
    return nn.Sequential(*(down(*pair, kernel_size, norm if block else "none") for block, pair in enumerate(pairs)))
