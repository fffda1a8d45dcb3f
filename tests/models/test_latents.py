"""Elements, Lambda and mixing, METHOD (1)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.schema import LambdaMixture
from pipeline.models import latents

KINDS = ("endpoints", "coin_flips", "single", "uniform", "spatial")


def only(kind: str) -> LambdaMixture:
    return LambdaMixture(**{name: float(name == kind) for name in KINDS})


def draw(kind: str, count: int = 400, shared: bool = False, seed: int = 0, side: int = 4) -> Tensor:
    return latents.draw(np.random.default_rng(seed), count, 5, side, side, only(kind), shared)


@pytest.mark.parametrize(
    ("channels", "elements", "sizes"),
    [(1024, 5, (204, 204, 204, 204, 208)), (32, 1, (32,)), (7, 7, (1,) * 7), (10, 4, (2, 2, 2, 4)), (6, 3, (2, 2, 2))],
)
def test_element_sizes(channels: int, elements: int, sizes: tuple[int, ...]) -> None:
    assert latents.element_sizes(channels, elements) == sizes


@pytest.mark.parametrize(("channels", "elements"), [(4, 5), (4, 0), (4, -1), (0, 1)])
def test_element_sizes_refuses(channels: int, elements: int) -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        latents.element_sizes(channels, elements)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 4, 5), (2, 3, 4, 5)])
def test_expand(shape: tuple[int, ...]) -> None:
    channels, height, width = 11, 4, 5
    lam = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    whole = latents.expand(lam, channels, height, width)
    batch = 2 if len(shape) in (2, 4) else 1
    assert whole.shape == (batch, channels, height, width) and whole.dtype == lam.dtype
    owner = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    for b in range(batch):
        for c in range(channels):
            element = (lam[b] if batch == 2 else lam)[owner[c]]
            assert torch.equal(whole[b, c], element.expand(height, width))


@pytest.mark.parametrize("shape", [(), (2, 3, 5, 4), (3, 4, 4), (2, 3, 1, 1), (1, 2, 3, 4, 5), (12,), (2, 0)])
def test_expand_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"fit|split"):
        latents.expand(torch.zeros(shape), 11, 4, 5)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (5, 2, 2), (3, 5, 2, 2)])
def test_mix(shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(1)
    z_a, z_b = torch.randn(3, 16, 2, 2, generator=random), torch.randn(3, 16, 2, 2, generator=random)
    assert torch.equal(latents.mix(z_a, z_b, torch.ones(shape)), z_a)
    assert torch.equal(latents.mix(z_a, z_b, torch.zeros(shape)), z_b)
    lam = torch.rand(shape, generator=random, dtype=torch.float64)
    mixed = latents.mix(z_a.double(), z_b.double(), lam)
    grid = lam.reshape(-1, 5, *(lam.shape[-2:] if len(shape) > 2 else (1, 1))).expand(3, 5, 2, 2)
    for channel, element in enumerate([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4]):
        weight, a, b = grid[:, element], z_a[:, channel].double(), z_b[:, channel].double()
        torch.testing.assert_close(mixed[:, channel], weight * a + (1 - weight) * b, rtol=1e-12, atol=1e-12)


def test_mix_moves_one_element_alone() -> None:
    z_a, z_b = torch.zeros(1, 1024, 4, 4), torch.ones(1, 1024, 4, 4)
    lam = torch.tensor([1.0, 1, 1, 1, 0])
    assert torch.equal(latents.mix(z_a, z_b, lam).amax(dim=(0, 2, 3)).nonzero().flatten(), torch.arange(816, 1024))


@pytest.mark.parametrize(
    ("channels", "sizes"), [(16, (1, 1, 1, 10, 3)), (384, (24, 24, 24, 234, 78)), (1024, (64, 64, 64, 624, 208))]
)
def test_a_pyramid_splits_unevenly(channels: int, sizes: tuple[int, ...]) -> None:
    assert latents.pyramid_sizes(channels) == sizes and sum(sizes) == channels
    z_a, z_b = torch.zeros(1, channels, 2, 2), torch.ones(1, channels, 2, 2)
    for element in range(5):
        lam = 1 - torch.eye(5)[element]
        moved = latents.mix(z_a, z_b, lam, sizes).amax(dim=(0, 2, 3)).nonzero().flatten()
        assert torch.equal(moved, torch.arange(sum(sizes[:element]), sum(sizes[: element + 1])))
    one = torch.tensor([0.25])  # one lambda for all
    assert torch.equal(latents.mix(z_a, z_b, one, sizes), latents.mix(z_a, z_b, one))
    assert latents.pyramid_parts(sizes, memory=False) == [*sizes[:4], 0, sizes[4], 0]


@pytest.mark.parametrize(("channels", "parts"), [(32, [2, 2, 2, 17, 3, 3, 3]), (1024, [64, 64, 64, 600, 24, 184, 24])])
def test_a_memory_is_part_of_4_and_5(channels: int, parts: list[int]) -> None:
    assert latents.pyramid_parts(latents.pyramid_sizes(channels), memory=True) == parts and sum(parts) == channels


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


def test_endpoints() -> None:
    lam = draw("endpoints")
    assert set(lam.sum(1).tolist()) == {0.0, 5.0}
    assert 0.4 < lam[:, 0].mean() < 0.6


def test_coin_flips() -> None:
    lam = draw("coin_flips", count=4000)
    assert set(lam.unique().tolist()) == {0.0, 1.0}
    assert len(lam.unique(dim=0)) == 32
    correlation = np.corrcoef(lam.numpy().T) - np.eye(5)
    assert np.abs(correlation).max() < 0.1 and (lam.mean(0) - 0.5).abs().max() < 0.05


def test_single() -> None:
    lam = draw("single", count=2000)
    assert set(lam.sum(1).tolist()) == {1.0, 4.0}
    odd = torch.where(lam.sum(1, keepdim=True) == 1, lam, 1 - lam)
    assert torch.equal(odd.sum(1), torch.ones(2000))
    assert (odd.mean(0) - 0.2).abs().max() < 0.05


def test_uniform() -> None:
    lam = draw("uniform", count=4000)
    assert (lam.mean(0) - 0.5).abs().max() < 0.03 and (lam.var(0) - 1 / 12).abs().max() < 0.01
    assert np.abs(np.corrcoef(lam.numpy().T) - np.eye(5)).max() < 0.1


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


def test_draws_without_a_spatial_share_stay_what_they_were() -> None:
    """Runs begun by an earlier version go on with the same Lambdas."""
    lam = latents.draw(np.random.default_rng(7), 8, 3, 2, 2, LambdaMixture(), False)
    assert (1000 * lam).round().int().tolist() == [
        *([0, 0, 1000], [160, 857, 613], [115, 44, 445], [0, 1000, 0]),
        *([0, 1000, 1000], [917, 823, 629], [1000, 1000, 1000], [497, 379, 248]),
    ]


def is_rectangle(inside: Tensor) -> bool:
    rows, columns = inside.any(1), inside.any(0)
    return torch.equal(inside, rows[:, None] & columns[None, :]) and contiguous(rows) and contiguous(columns)


def contiguous(line: Tensor) -> bool:
    places = line.nonzero().flatten()
    return int(places[-1] - places[0]) + 1 == len(places)


def test_mixture_shares_and_shape() -> None:
    shares = {"endpoints": 0.1, "coin_flips": 0.0, "single": 0.0, "uniform": 0.5, "spatial": 0.4}
    lam = latents.draw(np.random.default_rng(3), 4000, 5, 4, 4, LambdaMixture(**shares), False)
    assert lam.shape == (4000, 5, 4, 4)
    varies = (lam != lam[:, :, :1, :1]).flatten(1).any(1)
    fractional = ((lam > 0) & (lam < 1)).flatten(1).all(1)
    assert fractional.float().mean() == pytest.approx(0.5, abs=0.03)
    assert varies.float().mean() == pytest.approx(0.4 * (1 - 1 / 64), abs=0.03)  # one rectangle in 64 is everything
    assert not (varies & fractional).any()


def test_kind_of_one_image_does_not_move_the_others() -> None:
    """The same seed under two mixtures: an image whose kind stays keeps its Lambda."""
    first = LambdaMixture(endpoints=0.5, coin_flips=0.5, single=0, uniform=0)
    second = LambdaMixture(endpoints=0.5, coin_flips=0, single=0, uniform=0.5)
    a, b = (latents.draw(np.random.default_rng(4), 200, 5, 2, 2, mixture, False) for mixture in (first, second))
    uniform = ((b > 0) & (b < 1)).all(1)
    assert 60 < uniform.sum() < 140
    assert torch.equal(a[~uniform], b[~uniform])


def test_owner_matrices() -> None:
    assert torch.equal(latents.owner_matrix("layerwise", 5, 5), torch.eye(5))
    assert torch.equal(latents.owner_matrix("shared", 4, 5), torch.full((4, 5), 0.25))
    given = [[1.0, 0.5, 0, 0, 0], [0, 0.5, 1, 1, 1]]
    assert torch.equal(latents.owner_matrix("map", 2, 5, given), torch.tensor(given))


def test_layer_lambdas() -> None:
    random = torch.Generator().manual_seed(0)
    lam, owners = torch.rand(3, 2, generator=random), torch.tensor([[1.0, 0.25, 0], [0, 0.75, 1]])
    ours = latents.layer_lambdas(lam, owners)
    assert ours.shape == (3, 3)
    for b in range(3):
        for layer in range(3):
            expected = sum(float(lam[b, n]) * float(owners[n, layer]) for n in range(2))
            assert float(ours[b, layer]) == pytest.approx(expected)
    grid = torch.rand(3, 2, 4, 5, generator=random)
    ours = latents.layer_lambdas(grid, owners)
    assert ours.shape == (3, 3, 4, 5)
    torch.testing.assert_close(ours[:, 1], 0.25 * grid[:, 0] + 0.75 * grid[:, 1])
    eye = latents.owner_matrix("layerwise", 5, 5)
    five = torch.rand(3, 5, generator=random)
    assert torch.equal(latents.layer_lambdas(five, eye), five)
    same = torch.full((3, 5), 0.3)
    torch.testing.assert_close(latents.layer_lambdas(same, latents.owner_matrix("shared", 5, 5)), same)


BAND_SHAPES = [(5,), (3, 5), (5, 4, 4), (3, 5, 4, 4), (1,), (3, 1)]


@pytest.mark.parametrize("shape", BAND_SHAPES)
def test_bands_of_equal_lambdas_are_plain_mixing(shape: tuple[int, ...]) -> None:
    z_a, z_b = torch.randn(2, 3, 13, 4, 4)
    for value in (0.0, 0.3, 1.0):
        assert torch.equal(
            latents.mix_bands(z_a, z_b, torch.full(shape, value)), latents.mix(z_a, z_b, torch.full(shape, value))
        )
    assert torch.equal(latents.mix_bands(z_a, z_b, torch.ones(shape)), z_a)


def bands_of(z: Tensor) -> list[Tensor]:
    """The five bands, each a latent of its own: what they are, in NumPy's terms."""
    value = z.double().numpy()
    mean = value.mean((2, 3), keepdims=True)
    blocks = value.reshape(*value.shape[:2], 2, 2, 2, 2).mean((3, 5))  # a 4 x 4 grid as 2 x 2 blocks of 2 x 2
    layout = blocks.repeat(2, 2).repeat(2, 3) - mean
    thirds = []
    for first, last in ((0, 4), (4, 8), (8, 13)):
        third = np.zeros_like(value)
        third[:, first:last] = mean[:, first:last]
        thirds.append(third)
    return [torch.from_numpy(band) for band in (*thirds, value - mean - layout, layout)]


def test_each_element_moves_its_band_alone() -> None:
    z_a, z_b = torch.randn(2, 2, 13, 4, 4, dtype=torch.float64)
    bands_a, bands_b = bands_of(z_a), bands_of(z_b)
    torch.testing.assert_close(sum(bands_a), z_a, msg="bands add up to the latent")
    lambda_ = torch.tensor([[1.0, 0.2, 0.0, 0.7, 0.4], [0.0, 0.0, 0.9, 1.0, 0.0]], dtype=torch.float64)
    expected = sum(
        lambda_[:, n, None, None, None] * bands_a[n] + (1 - lambda_[:, n, None, None, None]) * bands_b[n]
        for n in range(5)
    )
    torch.testing.assert_close(latents.mix_bands(z_a, z_b, lambda_), expected)


def test_bands_of_the_smallest_latent_share_its_deviation() -> None:
    z_a, z_b = torch.randn(2, 1, 6, 2, 2)
    moved = latents.mix_bands(z_a, z_b, torch.tensor([1.0, 1, 1, 0, 1])) - z_a
    torch.testing.assert_close(moved.mean((2, 3)), torch.zeros(1, 6))
    assert moved[:, :3].abs().amin() > 0 and not moved[:, 3:].any()
