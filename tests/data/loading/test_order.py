"""The global order: the same for any number of ranks, resumable at any step, refused with advice that works."""

import itertools
import re

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.common.numbers import divisors
from pipeline.config import load as configuration
from pipeline.data.loading.order import Order, Stream, generator

SIZES = [(100, 12, 3), (97, 8, 8), (1, 4, 2), (5, 16, 4), (23, 7, 7), (64, 32, 4)]
"""(images, global batch, micro-batch); some have fewer images than a batch, some a prime number of them."""


def order(count: int, batch: int, micro: int, rank: int = 0, world: int = 1, seed: int = 3) -> Order:
    return Order(count, seed, batch, micro, rank, world)


@pytest.mark.parametrize(("count", "batch", "micro"), SIZES)
def test_each_image_once_per_epoch(count: int, batch: int, micro: int) -> None:
    steps = -(-3 * count // batch)
    stream = np.concatenate([order(count, batch, micro).indices(step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))
    if count > 20:
        assert not np.array_equal(stream[:count], stream[count : 2 * count])
        assert not np.array_equal(stream[:count], np.arange(count))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 16, 48])
def test_micro_batches_do_not_depend_on_the_number_of_ranks(world: int) -> None:
    whole = order(50, 240, 5)
    ranks = [order(50, 240, 5, rank, world) for rank in range(world)]
    assert {len(each.slices()) for each in ranks} == {whole.accumulation // world} == {ranks[0].accumulation}
    for step in (0, 1, 5, 10**9):
        assert all(np.array_equal(each.indices(step), whole.indices(step)) for each in ranks)
        seen = [each.indices(step)[span] for each in ranks for span in each.slices()]
        assert {len(micro) for micro in seen} == {5} and np.array_equal(np.concatenate(seen), whole.indices(step))


@pytest.mark.parametrize(("count", "batch", "micro"), SIZES)
def test_any_step_alone_equals_the_step_in_a_row(count: int, batch: int, micro: int) -> None:
    in_a_row = order(count, batch, micro)
    steps = [(in_a_row.indices(step), in_a_row.flips(step)) for step in range(20)]
    for step in (19, 0, 7, 13, 1):
        fresh = order(count, batch, micro)
        assert np.array_equal((fresh.indices(step), fresh.flips(step)), steps[step])


def test_draws() -> None:
    indices = order(200_000, 128, 16).indices(10**9)
    assert indices.dtype == np.int64 and indices.min() >= 0 and indices.max() < 200_000
    mine = order(10, 10, 10)
    first = mine.indices(0).copy()
    mine.indices(0)[:] = 0  # what is returned may be written to
    assert np.array_equal(mine.indices(0), first)
    flips = np.concatenate([order(10, 64, 8).flips(step) for step in range(100)])
    assert flips.dtype == bool and 0.46 < flips.mean() < 0.54


def test_the_sequence_is_part_of_the_format() -> None:
    """These numbers may not change: runs of earlier versions are resumed."""
    assert order(10, 4, 2, seed=0).indices(0).tolist() == [8, 0, 3, 7]
    assert generator(0, Stream.LAMBDA, 5).integers(0, 1000, 4).tolist() == [267, 217, 366, 484]


def test_seeds_and_streams_are_independent() -> None:
    keys = list(itertools.product((0, 1, 2), Stream, (0, 1, 2)))
    draws = np.stack([generator(*key).random(500) for key in keys])
    correlation = np.corrcoef(draws) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.25  # 5.6 standard deviations
    assert len({tuple(draw) for draw in draws}) == len(keys)
    again = generator(2, Stream.PENALTY, 1).random(500)
    assert np.array_equal(again, draws[keys.index((2, Stream.PENALTY, 1))])


CASES = [
    (batch, micro, world)
    for batch in (2, 4, 6, 7, 12, 30, 36, 96, 128)
    for micro in divisors(batch)
    if micro > 1
    for world in (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 256)
]


def test_refusals_advise_what_works() -> None:
    refused = 0
    for batch, micro, world in CASES:
        fits = batch % (micro * world) == 0
        try:
            Order(10, 0, batch, micro, 0, world)
            assert fits
            continue
        except UserError as error:
            assert not fits
            message = str(error)
        refused += 1
        assert message.startswith("training.global_batch_size: ") and "\n" not in message
        advice = message.split("; ")[1]
        values = [int(number) for number in re.findall(r"\d+", advice)]
        assert values, message
        for value in values:
            if "micro_batch_size" in advice:
                Order(10, 0, batch, value, 0, world)
                configuration.load(None, [f"training.global_batch_size={batch}", f"training.micro_batch_size={value}"])
            else:
                assert "ranks" in advice
                Order(10, 0, batch, micro, 0, value)
    assert refused > 100
