"""The Lambdas of training: what each kind draws, and that runs resume with the same ones."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.schema import LambdaMixture
from pipeline.models import lambda_draws

KINDS = ("endpoints", "coin_flips", "single", "uniform", "spatial")


def mixed(count: int, seed: int, elements: int = 5, side: int = 4, **shares: float) -> Tensor:
    mixture = LambdaMixture(**{name: shares.get(name, 0.0) for name in KINDS})
    return lambda_draws.draw(np.random.default_rng(seed), count, elements, side, side, mixture, False)


def draw(kind: str, count: int = 400, shared: bool = False, seed: int = 0, side: int = 4) -> Tensor:
    mixture = LambdaMixture(**{name: float(name == kind) for name in KINDS})
    return lambda_draws.draw(np.random.default_rng(seed), count, 5, side, side, mixture, shared)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [False, True])
def test_draws_are_in_range_and_repeat(kind: str, shared: bool) -> None:
    lam = draw(kind, shared=shared)
    assert lam.dtype == torch.float32
    assert lam.shape == ((400, 5, 4, 4) if kind == "spatial" else (400, 5))
    assert lam.min() >= 0 and lam.max() <= 1 and lam.unique().numel() > 1
    assert torch.equal(lam, draw(kind, shared=shared))
    assert not torch.equal(lam, draw(kind, shared=shared, seed=1))
    if shared:
        assert torch.equal(lam, lam[:, :1].expand_as(lam))


def test_endpoints_coin_flips_single_and_uniform() -> None:
    ends, coins, single, uniform = (draw(kind, count=4000) for kind in KINDS[:4])
    assert set(ends.sum(1).tolist()) == {0.0, 5.0} and 0.45 < ends[:, 0].mean() < 0.55
    assert set(coins.unique().tolist()) == {0.0, 1.0} and len(coins.unique(dim=0)) == 32
    assert set(single.sum(1).tolist()) == {1.0, 4.0}
    odd = torch.where(single.sum(1, keepdim=True) == 1, single, 1 - single)
    assert torch.equal(odd.sum(1), torch.ones(4000)) and (odd.mean(0) - 0.2).abs().max() < 0.05
    assert (uniform.var(0) - 1 / 12).abs().max() < 0.01
    for free in (coins, uniform):  # of each other
        assert np.abs(np.corrcoef(free.numpy().T) - np.eye(5)).max() < 0.1 and (free.mean(0) - 0.5).abs().max() < 0.05


def test_spatial_is_a_rectangle() -> None:
    lam = draw("spatial", count=600)
    assert torch.equal(lam, lam[:, :1].expand_as(lam)) and set(lam.unique().tolist()) == {0.0, 1.0}
    rectangles = set()
    for grid in lam[:, 0].bool():
        matches = [inside for inside in (grid, ~grid) if inside.any() and is_rectangle(inside)]
        assert matches
        rectangles.add(tuple(grid.flatten().tolist()))
    assert len(rectangles) > 100
    assert 0.4 < lam.mean() < 0.6
    assert lam[:, 0].mean(0).std() < 0.06  # ones inside and zeros inside are equally likely


def test_spatial_draws_rectangles_halves_and_parts_of_the_face() -> None:
    grids = ["".join(str(int(value)) for value in grid.flatten()) for grid in draw("spatial", count=6000)[:, 0]]

    def share(*rows: str) -> float:
        """Of Lambdas that are 1 in these cells alone, or 0 in these cells alone."""
        ones = "".join(rows)
        return sum(grid in (ones, ones.translate(str.maketrans("01", "10"))) for grid in grids) / len(grids)

    rectangle = 1 / 3 * (2 / 16) ** 2  # first and last of four rows and columns: all of them, or a given two
    assert share("1100", "1100", "1100", "1100") == pytest.approx(1 / 6 + 2 * rectangle, abs=0.02)  # left or right
    assert share("0000", "0110", "0110", "0000") > 0.04 > 2 * rectangle  # nose or eyes
    assert share("0000", "0000", "0110", "0110") > 0.06  # mouth
    upper = share("1111", "1111", "0000", "0000")  # hair, or the upper half, or the lower one
    assert upper == pytest.approx(1 / 3 * 1 / 4 + 1 / 6 + 2 * rectangle, abs=0.02)
    assert share("1000", "0000", "0000", "0000") == pytest.approx(1 / 3 * (1 / 16) ** 2, abs=0.003)


def test_spatial_on_a_single_cell_is_an_endpoint() -> None:
    lam = draw("spatial", side=1)
    assert torch.equal(lam, lam[:, :1].expand_as(lam)) and set(lam.unique().tolist()) == {0.0, 1.0}


def test_draws_stay_what_they_were() -> None:
    """Runs begun by an earlier version go on with the same Lambdas."""
    lam = lambda_draws.draw(np.random.default_rng(7), 8, 3, 2, 2, LambdaMixture(), False)
    assert (1000 * lam).round().int().tolist() == [
        *([0, 0, 1000], [160, 857, 613], [115, 44, 445], [0, 1000, 0]),
        *([0, 1000, 1000], [917, 823, 629], [1000, 1000, 1000], [497, 379, 248]),
    ]
    lam = mixed(8, 7, elements=3, side=2, endpoints=0.1, coin_flips=0.1, single=0.2, uniform=0.2, spatial=0.4)
    rows = ["010101010101", "001100110011", "0" * 12, "111100000000", "000000001111", "010101010101", "1" * 12]
    assert ["".join(str(int(value)) for value in each.flatten()) for each in lam] == [*rows, "000100010001"]


def is_rectangle(inside: Tensor) -> bool:
    rows, columns = inside.any(1), inside.any(0)
    return torch.equal(inside, rows[:, None] & columns[None, :]) and contiguous(rows) and contiguous(columns)


def contiguous(line: Tensor) -> bool:
    indices = line.nonzero().flatten()
    return int(indices[-1] - indices[0]) + 1 == len(indices)


def test_mixture_shares_and_shape() -> None:
    lam = mixed(4000, 3, endpoints=0.1, uniform=0.5, spatial=0.4)
    assert lam.shape == (4000, 5, 4, 4)
    varies = (lam != lam[:, :, :1, :1]).flatten(1).any(1)
    fractional = ((lam > 0) & (lam < 1)).flatten(1).all(1)
    assert fractional.float().mean() == pytest.approx(0.5, abs=0.03)
    assert varies.float().mean() == pytest.approx(0.4 * (1 - 1 / 64), abs=0.03)  # one rectangle in 64 is everything
    assert not (varies & fractional).any()


def test_kind_of_one_image_does_not_move_the_others() -> None:
    """The same seed under two mixtures: an image whose kind stays keeps its Lambda."""
    a, b = mixed(200, 4, endpoints=0.5, coin_flips=0.5), mixed(200, 4, endpoints=0.5, uniform=0.5)
    uniform = ((b > 0) & (b < 1)).all(1)
    assert 60 < uniform.sum() < 140
    assert torch.equal(a[~uniform], b[~uniform])
