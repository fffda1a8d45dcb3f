"""Operations are counted as by hand, and tensors from when they are made until they are freed."""

import pytest
import torch
from torch import nn

from pipeline.cli.bench.counting import Counter

MIB = 2**18
"""float32 numbers in one MiB."""


def test_tensors_that_are_alive_together_are_counted_together() -> None:
    counter = Counter()
    with counter:
        held = torch.zeros(MIB)
        a = torch.ones(MIB)
        b = a + held  # with `held`: 3 MiB
        a.add_(1)  # in place
        b.view(-1)[1:]  # the same memory
        del a
        c = b * 2  # b, c, held
        del b, c
        torch.ones(MIB // 2)
    assert counter.peak_bytes == 3 * 2**20 and counter.bytes == 2**20, "only `held` is left"


def test_memory_that_autograd_keeps_is_counted() -> None:
    def peak(backward: bool) -> int:
        counter = Counter()
        with torch.set_grad_enabled(backward), counter:
            weight = torch.ones(MIB, requires_grad=True)
            result = (weight.exp() + 1).exp().sum()  # the result of each exp is kept for the backward
            if backward:
                result.backward()
        return counter.peak_bytes

    assert peak(backward=False) == 3 * 2**20, "the weight, one result and the next"
    assert 4 * 2**20 <= peak(backward=True) < 6 * 2**20, "both results and a gradient"


def test_operations_of_a_convolution_forward_backward_and_twice_backward() -> None:
    """Side 8 to 4, from 3 to 5 channels; the last is of the penalty's kind, where the gradient has a gradient."""
    network, images = nn.Conv2d(3, 5, 4, stride=2, padding=1), torch.rand(2, 3, 8, 8, requires_grad=True)
    once = 2 * (2 * 5 * 4 * 4) * (3 * 4 * 4)
    counter = Counter()
    with counter:
        output = network(images).square().sum()
        assert counter.flop == once
        (gradient,) = torch.autograd.grad(output, images, create_graph=True)
        assert counter.flop == 2 * once
        gradient.square().sum().backward()
    assert counter.flop == pytest.approx(7 * once, abs=2 * once), "once more for each weight and each output's gradient"
