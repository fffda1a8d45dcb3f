"""The effect matrix of models whose effects are known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.measures.distances import represented, represented_distances
from pipeline.measures.effects import dead_elements, effect_matrix, separation
from pipeline.models import latents


def one_channel_each(images: Tensor) -> list[Tensor]:
    return list(images.split(1, dim=1))


def effects(seen: Callable[[Tensor], list[Tensor]], batches: list[Tensor], used: int = 5) -> Tensor:
    """Of a model whose images are its latents, one channel per element, or only the first of them."""

    def fuse(z_a: Tensor, z_b: Tensor, lambda_: Tensor) -> Tensor:
        z = latents.mix(z_a, z_b, lambda_)
        return torch.cat([z[:, :used], torch.zeros_like(z[:, used:])], dim=1)

    return effect_matrix(fuse, seen, batches, 5)  # type: ignore[arg-type]


def images(*counts: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(count, 5, 4, 6, generator=random) for count in counts]


def test_each_element_drives_its_layer_alone() -> None:
    matrix = effects(one_channel_each, images(4, 3))
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix, torch.eye(5))
    torch.testing.assert_close(own_shares(matrix), torch.ones(5))


def test_rows_are_elements_and_columns_layers() -> None:
    """Layer l sees element l + 1 (around the end)."""
    matrix = effects(lambda x: one_channel_each(x.roll(-1, dims=1)), images(6))
    torch.testing.assert_close(matrix, torch.eye(5).roll(1, dims=1).T)
    assert own_shares(matrix).tolist() == [0] * 5


def test_a_layer_that_two_elements_share() -> None:
    """conv4_1 sees elements 1 and 4, of which 1 moves three times as far."""

    def seen(x: Tensor) -> list[Tensor]:
        layers = one_channel_each(x)
        layers[3] = torch.cat([3 * x[:, 0:1], x[:, 3:4]], dim=1)
        return layers

    (batch,) = images(5)
    matrix = effects(seen, [batch])
    moved = (batch - batch.roll(1, 0)).square().sum(dim=(0, 2, 3))
    first, fourth = 9 * moved[0], moved[3]
    expected = torch.eye(5)
    expected[0, 3], expected[3, 3] = (first / (first + fourth)).sqrt(), (fourth / (first + fourth)).sqrt()
    torch.testing.assert_close(matrix, expected)
    shares = own_shares(matrix)
    torch.testing.assert_close(shares[3], fourth / (first + fourth))
    assert shares[0] == 1


def test_batches_add_up_by_image() -> None:
    """Not the mean of the batches' matrices: a batch that moves more counts more."""

    def seen(x: Tensor) -> list[Tensor]:
        layers = one_channel_each(x)
        layers[4] = x[:, 3:5]
        return layers

    still, moving = images(4, 4)
    still = still * torch.tensor([1, 1, 1, 10, 0.1])[:, None, None]
    matrix = effects(seen, [still, moving])
    totals = [(batch - batch.roll(1, 0)).square().sum(dim=(0, 2, 3)) for batch in (still, moving)]
    fourth, fifth = (totals[0][n] + totals[1][n] for n in (3, 4))
    torch.testing.assert_close(matrix[4, 4], (fifth / (fourth + fifth)).sqrt())


def test_no_effect_is_zero_but_of_nothing_it_is_undefined() -> None:
    def seen(x: Tensor) -> list[Tensor]:
        return [*one_channel_each(x)[:4], x[:, 2:3]]  # nothing looks at element 5

    matrix = effects(seen, images(4))
    assert torch.equal(matrix[4], torch.zeros(5)) and matrix[2, 4] == 1
    assert own_shares(matrix)[4] == 0
    unused = effects(one_channel_each, images(4), used=3)  # layers 4 and 5 never move
    torch.testing.assert_close(unused[:, :3], torch.eye(5)[:, :3])
    assert unused[:, 3:].isnan().all()
    assert effects(one_channel_each, [torch.ones(4, 5, 4, 4)]).isnan().all()


def test_distances_are_those_of_the_losses() -> None:
    x, y = images(2, 2)
    distances = represented_distances(*(represented(one_channel_each(images)) for images in (x, y)))
    assert distances.shape == (2, 5)
    for image in range(2):
        for layer in range(3):  # style: of the one entry of the Gram matrix, a mean over 24 places
            entries = [(t[image, layer] ** 2).sum() / 24 for t in (x, y)]
            torch.testing.assert_close(distances[image, layer], (entries[0] - entries[1]) ** 2)
        for layer in (3, 4):
            expected = (x[image, layer] - y[image, layer]).square().sum() / 24
            torch.testing.assert_close(distances[image, layer], expected)


def own_shares(effects: Tensor) -> Tensor:
    with np.errstate(invalid="ignore"):
        return torch.tensor(separation(effects.square().numpy())["own_shares"])


def test_separation_of_hand_made_squares() -> None:
    """Element 1 causes all of layers 1 to 4 and half of layer 5, element 5 the other half."""
    squares = np.zeros((5, 5))
    squares[0, :4], squares[[0, 4], 4] = 2, 1
    with np.errstate(invalid="ignore"):
        found = separation(squares)
    assert found["own_shares"].tolist() == [1, 0, 0, 0, 0.5] and found["own_share"] == 0.3
    assert found["leakages"][0] == pytest.approx(1 - 2 / 9) and found["leakages"][4] == 0
    assert found["block_style"] == 1  # element 1 is a style element
    assert found["block_content"] == pytest.approx((0 + 0.5) / 2)


def test_chance_and_perfection() -> None:
    alike = separation(np.full((3, 5, 5), 0.3))
    for name, chance in (("own_share", 0.2), ("leakage", 0.8), ("block_style", 0.6), ("block_content", 0.4)):
        assert alike[name] == pytest.approx([chance] * 3)
    perfect = separation(np.eye(5))
    assert [float(perfect[name]) for name in ("own_share", "leakage", "block_style", "block_content")] == [1, 0, 1, 1]
    assert separation(np.ones((4, 5))) == {}


def test_dead_elements() -> None:
    matrix = np.full((4, 5), 0.01)
    matrix[0, 3], matrix[2, 1] = 0.06, 0.0499
    matrix[3] = np.nan
    assert dead_elements(matrix) == [2, 3, 4]
    assert dead_elements(np.eye(5)) == []
