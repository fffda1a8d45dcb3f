"""Paths that are known: straight, broken, and still."""

import pytest
import torch
from torch import Tensor

from pipeline.measures.distances import pixel_point
from pipeline.measures.path import STEPS, fused_at, lines, path_columns, rank_correlation, travelled
from pipeline.models import latents


def fuse(z_a: Tensor, z_b: Tensor, lambda_: Tensor) -> Tensor:
    """Images are latents: three channels, one per element; the last goes nowhere."""
    z = latents.mix(z_a, z_b, lambda_)
    return torch.cat([z[:, :2], torch.zeros_like(z[:, 2:])], dim=1)


def test_ranks_of_monotone_broken_and_still_distances() -> None:
    rising = torch.arange(11.0)
    distances = torch.stack([rising.square(), -rising, torch.ones(11)])
    assert rank_correlation(distances).tolist() == pytest.approx([1, -1, 0])
    assert rank_correlation(rising[None]).tolist() == pytest.approx([1])
    swapped = torch.tensor([1.0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    expected = 1 - 6 * 2 / (11 * (11**2 - 1))  # Spearman's formula: two ranks off by one
    assert rank_correlation(swapped[None, None]).item() == pytest.approx(expected)
    back_and_forth = torch.tensor([0.0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0])
    assert abs(rank_correlation(back_and_forth[None]).item()) < 1e-6


def test_lines_go_from_all_ones_to_what_moves_at_zero() -> None:
    lambdas = lines(3)
    assert lambdas.shape == (4, STEPS, 3)
    assert torch.equal(lambdas[:, 0], torch.ones(4, 3))
    assert lambdas[:, -1].tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_a_straight_path_is_even_and_a_dead_element_stands_still() -> None:
    z_a, z_b = torch.rand(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = travelled(fuse, pixel_point, fuse(z_a, z_b, torch.ones(3)), z_a, z_b, lines(3))
    assert found["to_a"].shape == (4, 4, STEPS) and found["steps"].shape == (4, 4, STEPS - 1)
    torch.testing.assert_close(found["to_start"], found["to_a"])
    columns = path_columns(found)
    torch.testing.assert_close(columns["spearman_all"].float(), torch.ones(4))
    torch.testing.assert_close(columns["spearman_start_elements"].float(), torch.tensor([1.0, 1, 0]).expand(4, 3))
    torch.testing.assert_close(columns["largest_step_all"], torch.ones(4), rtol=1e-4, atol=0)
    torch.testing.assert_close(columns["largest_step_elements"], torch.ones(4, 3), rtol=1e-4, atol=0)
    torch.testing.assert_close(columns["curve"][:, 0], torch.linspace(0, 1, STEPS).expand(4, STEPS))
    assert not columns["curve"][:, 3].any()


def test_a_path_in_one_step_is_as_uneven_as_can_be() -> None:
    to_a = torch.cat([torch.zeros(6), torch.ones(5)]).expand(1, 1, STEPS)
    steps = torch.zeros(1, 1, STEPS - 1)
    steps[..., 5] = 1
    columns = path_columns({"to_a": to_a, "to_start": to_a, "steps": steps})
    assert columns["largest_step_all"].item() == pytest.approx(STEPS - 1)
    assert columns["spearman_all"].item() < 0.9


@pytest.mark.parametrize(("pairs", "batches"), [(1, [7]), (12, [24, 24, 24, 12]), (40, [40] * 7)])
def test_every_pair_at_every_lambda(pairs: int, batches: list[int]) -> None:
    z_a, z_b = torch.rand(2, pairs, 3, 2, 2)
    lambdas, sizes = torch.rand(7, 3), list[int]()

    def fuse(z_a: Tensor, z_b: Tensor, lambda_: Tensor) -> Tensor:
        sizes.append(len(z_a))
        return latents.mix(z_a, z_b, lambda_)

    found = [image for images, count in fused_at(fuse, z_a, z_b, lambdas) for image in images.chunk(count)]
    assert sizes == batches and len(found) == 7
    for images, lambda_ in zip(found, lambdas, strict=True):
        torch.testing.assert_close(images, latents.mix(z_a, z_b, lambda_))
