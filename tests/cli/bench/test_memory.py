"""Tensors are counted from when they are made until they are freed."""

import torch

from pipeline.cli.bench.memory import peak_bytes

MIB = 2**18
"""float32 numbers in one MiB."""


def test_what_is_alive_together_is_counted_together() -> None:
    held = torch.zeros(MIB)

    def run() -> None:
        a = torch.ones(MIB)
        b = a + held  # with `held`: 3 MiB
        a.add_(1)  # in place
        b.view(-1)[1:]  # the same memory
        del a
        c = b * 2  # b, c, held
        del b, c
        torch.ones(MIB // 2)

    assert peak_bytes([held, held.view(2, -1)], run) == 3 * 2**20


def test_what_autograd_keeps_is_counted() -> None:
    weight = torch.ones(MIB, requires_grad=True)

    def forward() -> torch.Tensor:
        return (weight.exp() + 1).exp().sum()  # each exp keeps its result for the backward

    with torch.no_grad():
        assert peak_bytes([weight], forward) == 3 * 2**20, "the weight, one result and the next"
    assert 4 * 2**20 <= peak_bytes([weight], lambda: forward().backward()) < 6 * 2**20, "both results and a gradient"
