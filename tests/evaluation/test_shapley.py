"""Shapley values of games whose values are known."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.shapley import corner_distances, shapley_statistics, shapley_values
from pipeline.measures.distances import represented, represented_distances
from pipeline.models import latents


def coalitions(players: int) -> Tensor:
    """(2^N, N): who is in which."""
    return torch.tensor([[each >> player & 1 for player in range(players)] for each in range(2**players)]).double()


def test_of_an_additive_game_they_are_what_each_adds() -> None:
    amounts = torch.tensor([[0.5, -1, 2, 0, 3], [1, 1, 1, 1, 7]]).double()
    worth = amounts @ coalitions(5).T
    torch.testing.assert_close(shapley_values(worth), amounts)


def test_a_synergy_is_shared_by_those_who_make_it() -> None:
    members = coalitions(3)
    worth = (members[:, 0] * members[:, 2])[None] * 6
    torch.testing.assert_close(shapley_values(worth), torch.tensor([[3.0, 0, 3]]).double())


def test_they_are_the_mean_over_all_orders_and_add_up() -> None:
    worth = torch.rand(2, 16, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.zeros(2, 4, 3).double()
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        coalition = 0
        for player in order:
            expected[:, player] += (worth[:, coalition | 1 << player] - worth[:, coalition]) / len(orders)
            coalition |= 1 << player
    values = shapley_values(worth)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(values.sum(dim=1), worth[:, -1] - worth[:, 0])


def test_shares_of_a_layer_add_up_to_one() -> None:
    values = np.arange(50.0).reshape(2, 5, 5)
    found = shapley_statistics({"values": values, "whole": values.sum(axis=1)})
    np.testing.assert_allclose(found["matrix"].sum(axis=1), 1)
    assert found["own_share"] == pytest.approx(np.diagonal(found["matrix"], axis1=1, axis2=2).mean(axis=1))
    assert set(shapley_statistics({"values": values[:, :3], "whole": values.sum(axis=1)})) == {"matrix"}


def test_corners_are_numbered_by_who_is_at_b() -> None:
    """Element n moves layer n alone, by as much as in no other pair."""

    def one_channel_each(images: Tensor) -> list[Tensor]:
        return list(images.split(1, dim=1))

    z_a, z_b = torch.zeros(3, 5, 2, 2), torch.rand(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    worth = corner_distances(latents.mix, one_channel_each, z_a, z_b, 5)  # type: ignore[arg-type]
    assert worth.shape == (3, 32, 5)
    whole = represented_distances(*(represented(one_channel_each(z)) for z in (z_b, z_a)))
    torch.testing.assert_close(worth, coalitions(5).float()[None] * whole[:, None])
    torch.testing.assert_close(shapley_values(worth), torch.diag_embed(whole))
