"""The blocks of E, G and D: strided convolution, normalisation, activation; or these beside a shortcut."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.schema import Blocks, Norm

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


class Residual(nn.Module):
    """A block added to a shortcut without parameters: its input, pixels moved into channels or back (Chen et al. 2024).

    What the shortcuts alone compute is a coarse copy of the image, which the blocks then need not learn.
    """

    def __init__(self, block: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.block, self.shortcut = block, shortcut

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.block(x) + self.shortcut(x)
        return output


def residual_down(block: nn.Module, inputs: int, outputs: int) -> Residual:
    """`block` halves the resolution; its shortcut moves 2 x 2 pixels into channels."""
    return Residual(block, nn.Sequential(nn.PixelUnshuffle(2), FitChannels(4 * inputs, outputs)))


def residual_up(block: nn.Module, inputs: int, outputs: int) -> Residual:
    """`block` doubles the resolution; its shortcut moves channels into 2 x 2 pixels."""
    return Residual(block, nn.Sequential(FitChannels(inputs, 4 * outputs), nn.PixelShuffle(2)))


def memory_format(x: Tensor) -> torch.memory_format:
    """How (B, C, H, W) lies in memory. Where two layouts meet, a GPU is slow."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class FitChannels(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H, W): neighbouring channels averaged, or each repeated."""

    averaging: Tensor | None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        averaging = None
        if outputs % inputs and inputs % outputs:
            averaging = functional.adaptive_avg_pool1d(torch.eye(inputs)[None], outputs)[0].T[..., None, None]
        self.register_buffer("averaging", averaging, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.averaging is not None:
            return functional.conv2d(x, self.averaging)
        last = memory_format(x) == torch.channels_last  # keep it, and that of the gradient
        x, dim = (x.movedim(1, -1), 3) if last else (x, 1)
        if self.outputs % self.inputs == 0:
            x = x.repeat_interleave(self.outputs // self.inputs, dim)
        else:
            x = x.unflatten(dim, (self.outputs, -1)).mean(dim + 1)
        return x.movedim(-1, 1) if last else x


def down_stack(channels: list[int], kernel_size: int, norm: Norm, kind: Blocks = "plain") -> nn.Sequential:
    """The blocks of E and of D; the first has no normalisation. (B, 3, H, W) -> (B, channels[-1], H / 2^n, W / 2^n)."""
    pairs = list(itertools.pairwise([3, *channels]))
    stack: list[nn.Module] = [down(*pair, kernel_size, norm if n else "none") for n, pair in enumerate(pairs)]
    if kind == "residual":
        stack = [residual_down(block, *pair) for block, pair in zip(stack, pairs, strict=True)]
    return nn.Sequential(*stack)


def hidden_stack(channels: list[int], kernel_size: int, norm: Norm, kind: Blocks = "plain") -> nn.Sequential:
    """Blocks of G before the image: (B, channels[0], h, w) -> (B, channels[-1], h 2^n, w 2^n)."""
    pairs = list(itertools.pairwise(channels))
    stack: list[nn.Module] = [up(*pair, kernel_size, norm, nn.ReLU(inplace=True)) for pair in pairs]
    if kind == "residual":
        stack = [residual_up(block, *pair) for block, pair in zip(stack, pairs, strict=True)]
    return nn.Sequential(*stack)


def up_stack(channels: list[int], kernel_size: int, norm: Norm, kind: Blocks = "plain") -> nn.Sequential:
    """The blocks of G, the last one to an image: (B, channels[0], h, w) -> (B, 3, h 2^n, w 2^n) in [-1, 1]."""
    hidden = hidden_stack(channels, kernel_size, norm, kind)
    if kind == "plain":
        return hidden.append(up(channels[-1], 3, kernel_size, "none", nn.Tanh()))
    output = residual_up(up(channels[-1], 3, kernel_size, "none", nn.Identity()), channels[-1], 3)
    return hidden.append(nn.Sequential(output, nn.Tanh()))
