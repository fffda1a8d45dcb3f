"""Shapes, normalisation and activation of the blocks."""

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config.schema import Norm
from pipeline.models import blocks


@pytest.mark.parametrize("kernel_size", [4, 5])
@pytest.mark.parametrize("side", [2, 8, 32])
def test_resolution(kernel_size: int, side: int) -> None:
    x = torch.zeros(1, 3, side, 2 * side)
    assert blocks.down(3, 4, kernel_size, "none")(x).shape == (1, 4, side // 2, side)
    assert blocks.up(3, 4, kernel_size, "none", nn.Tanh())(x).shape == (1, 4, 2 * side, 4 * side)


@pytest.mark.parametrize("kind", ["batch", "layer", "none"])
def test_norms(kind: Norm) -> None:
    for block in (blocks.down(3, 6, 4, kind), blocks.up(3, 6, 4, kind, nn.ReLU())):
        norms = [layer for layer in block if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm)]
        assert len(norms) == (kind != "none") and len(block) == 2 + len(norms)
        assert (block[0].bias is None) == (kind != "none")  # the norm has its own
        if kind == "batch":
            assert isinstance(norms[0], nn.BatchNorm2d) and norms[0].num_features == 6
        if kind == "layer":
            assert isinstance(norms[0], nn.GroupNorm) and (norms[0].num_groups, norms[0].num_channels) == (1, 6)


@pytest.mark.parametrize("kind", ["batch", "layer", "none"])
def test_down_stack(kind: Norm) -> None:
    stack: Any = blocks.down_stack(blocks.widths(2), 4, kind)
    assert stack(torch.zeros(2, 3, 64, 64)).shape == (2, 32, 2, 2)
    has_norm = [any(isinstance(layer, nn.BatchNorm2d | nn.GroupNorm) for layer in block) for block in stack]
    assert has_norm == [False] + [kind != "none"] * 4
    channels = [(block[0].in_channels, block[0].out_channels) for block in stack]
    assert channels == [(3, 2), (2, 4), (4, 8), (8, 16), (16, 32)]


@pytest.mark.parametrize("base", [2, 8, 12, 24, 64])
def test_residual_stacks_have_the_same_shapes(base: int) -> None:
    x = torch.zeros(1, 3, 64, 64)
    z = blocks.down_stack(blocks.widths(base), 4, "none", "residual")(x)
    assert z.shape == (1, 16 * base, 2, 2)
    assert blocks.up_stack(blocks.widths(base)[::-1], 4, "none", "residual")(z).shape == x.shape


def test_fitted_channels_are_averaged_or_repeated() -> None:
    x = torch.arange(12.0).view(1, 12, 1, 1)
    assert blocks.FitChannels(12, 4)(x).flatten().tolist() == [1, 4, 7, 10]
    assert blocks.FitChannels(2, 4)(x[:, :2]).flatten().tolist() == [0, 0, 1, 1]
    uneven = blocks.FitChannels(12, 5)(x).flatten().tolist()
    assert uneven == sorted(uneven) and len(uneven) == 5 and sum(uneven) / 5 == pytest.approx(5.5)


@pytest.mark.parametrize("channels", [4, 24, 32, 40])
@pytest.mark.parametrize("last", [True, False])
def test_shortcuts_keep_the_layout(last: bool, channels: int) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(0))
    fit, laid = blocks.FitChannels(8, channels), x.contiguous(memory_format=layout)
    assert fit(laid).is_contiguous(memory_format=layout)
    torch.testing.assert_close(fit(laid), fit(x))


def test_shortcuts_alone_carry_a_coarse_image() -> None:
    """Blocks that give 0 leave an image of one colour as it was, and of any image its average in each channel."""
    down, up = (
        blocks.down_stack(blocks.widths(24), 4, "none", "residual"),
        blocks.up_stack(blocks.widths(24)[::-1], 4, "none", "residual"),
    )
    for parameter in (*down.parameters(), *up.parameters()):
        nn.init.zeros_(parameter)
    grey = torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    torch.testing.assert_close(up(down(grey)), grey.tanh())
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(up(down(noise)).atanh().mean(dim=(2, 3)), noise.mean(dim=(2, 3)))
