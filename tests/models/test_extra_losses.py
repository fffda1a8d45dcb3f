"""The terms that the paper does not have: SSIM, and what looks at elements flipped alone."""

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from pipeline.measures import effects
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


def test_separation_is_what_evaluation_measures() -> None:
    random = torch.Generator().manual_seed(3)
    moved, whole = torch.rand(4, 5, 5, generator=random), 1 + torch.rand(4, 5, generator=random)
    moved[0] *= 10  # a pair far apart counts for more
    whole[0] *= 10
    wanted = effects.separation((moved.mean(0) / whole.mean(0)).double().numpy())
    found = extra_losses.separation(moved, whole)
    assert found.shape == (4,)
    expected = torch.tensor(1 - wanted["own_share"] + wanted["leakage"], dtype=torch.float64)
    torch.testing.assert_close(found.mean().double(), expected, rtol=1e-3, atol=1e-3)
    assert extra_losses.separation(torch.eye(5)[None], torch.ones(1, 5)).item() == pytest.approx(0, abs=2e-3)
    assert extra_losses.separation(torch.ones(1, 5, 5), torch.ones(1, 5)).item() == pytest.approx(2 - 2 / 5)


def test_separation_counts_what_goes_beyond_all_elements_as_if_it_moved_another_layer() -> None:
    beyond, leaked = torch.diag(torch.tensor([1.0, 1, 4, 1, 1])), torch.eye(5)
    leaked[2, 0] = 3
    for moved in (beyond, leaked):
        assert extra_losses.separation(moved[None], torch.ones(1, 5)).item() == pytest.approx(2 * 0.75 / 5, abs=2e-3)


def test_separation_of_equal_images_is_finite() -> None:
    moved, whole = torch.zeros(1, 5, 5, requires_grad=True), torch.zeros(1, 5, requires_grad=True)
    value = extra_losses.separation(moved, whole)
    gradients = torch.autograd.grad(value.sum(), (moved, whole))
    assert all(each.isfinite().all() for each in (value, *gradients))


def test_path_is_the_cosine_of_an_acute_angle_with_the_way_back() -> None:
    """A' at the origin and A at (2, 0): to (3, 0) it goes through A, to (1, 1) half that way, to the others not."""
    a = torch.tensor([2.0, 0.0])
    ends = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 5.0], [-1.0, 1.0], [0.0, 0.0]])
    to_a, to_start = ((ends - point).square().sum(1)[None] for point in (a, torch.zeros(2)))
    found = extra_losses.path(to_a, to_start, torch.tensor([4.0]))
    torch.testing.assert_close(found, torch.tensor([(1 + 2**-0.5) / 5]))


def test_path_of_equal_images_is_finite() -> None:
    to_a, to_start, start_to_a = (torch.zeros(size, requires_grad=True) for size in ((1, 5), (1, 5), (1,)))
    value = extra_losses.path(to_a, to_start, start_to_a)
    gradients = torch.autograd.grad(value.sum(), (to_a, to_start, start_to_a))
    assert value.item() == 0 and all(each.isfinite().all() for each in gradients)
