"""SSIM as a loss, against the library that evaluation uses."""

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from pipeline.models import extra_losses, losses


def drawn(*shape: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 12, 12), (4, 3, 32, 32), (2, 1, 64, 64)])
def test_structural_similarity_is_what_evaluation_measures(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, noise = drawn(*shape, seed=1), drawn(*shape, seed=2)
    x, y = x.to(dtype), (0.7 * x + noise).to(dtype)
    wanted = structural_similarity_index_measure(x.double(), y.double(), data_range=2.0, reduction="none")
    assert isinstance(wanted, Tensor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extra_losses.structural_similarity(x, y)
    assert found.dtype == losses.wide(x).dtype
    torch.testing.assert_close(
        found.double(), wanted.reshape(-1), rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6
    )
    ones = torch.ones(len(x), dtype=found.dtype)
    torch.testing.assert_close(extra_losses.structural_similarity(x, x), ones, rtol=0, atol=1e-6)


def test_structural_similarity_has_the_library_gradient() -> None:
    x, y = drawn(2, 3, 16, 16, seed=1), drawn(2, 3, 16, 16, seed=2)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(extra_losses.structural_similarity(x, y).sum(), x)
    wanted = structural_similarity_index_measure(x, y, data_range=2.0, reduction="sum")
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(ours, torch.autograd.grad(wanted, x)[0])
