"""Statistics of means over images or pairs, and their bootstrap intervals. One row per image or pair, in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.measures.effects import Array, Rows

Statistic = Callable[[Rows], Rows]
"""From means (R, ...) to values (R, ...); each of the R entries comes from one resampling of the rows."""

DRAWS, LEVEL = 1000, 0.95
DECIMALS = 6


def as_rows(batches: list[dict[str, Tensor]]) -> Rows:
    """What was measured of each batch, (B, ...) by name, one after the other."""
    return {name: torch.cat([each[name] for each in batches]).double().cpu().numpy() for name in batches[0]}


def count(rows: Rows) -> int:
    """Number of images or pairs."""
    return len(next(iter(rows.values())))


def resampling(rows: int, seed: int, pairs: bool = False) -> Array:
    """(DRAWS, rows): how much each row weighs in each draw with replacement; of pairs, blocks of neighbours are drawn.

    Neighbouring pairs share a face (pairs.py). Drawn one by one, 95 % intervals of a sum of what belongs to A and what
    belongs to B would hold the truth 80 times in a hundred. (Circular block bootstrap, Politis and Romano, 1992.)
    """
    length = round(rows ** (1 / 3)) if pairs else 1
    starts = np.random.default_rng(seed).multinomial(-(-rows // length), np.full(rows, 1 / rows), size=DRAWS)
    counts = starts.copy()
    for shift in range(1, length):
        counts += np.roll(starts, shift, axis=1)
    weights: Array = counts / counts.sum(axis=1, keepdims=True)
    return weights


def value(rows: Rows, statistic: Statistic) -> Rows:
    """The statistic of the rows as they are: name -> (...)."""
    everything = np.full((1, count(rows)), 1 / count(rows))
    return {name: found[0] for name, found in _apply(rows, everything, statistic).items()}


def draws(rows: Rows, statistic: Statistic, seed: int, pairs: bool = False) -> Rows:
    """The statistic of every resampling: name -> (DRAWS, ...). The same seed resamples alike: draws can be paired.

    Args:
        pairs: whether rows are of pairs in their order, not of faces.
    """
    drawn = _apply(rows, resampling(count(rows), seed, pairs), statistic)
    return drawn if count(rows) > 1 else {name: np.full_like(each, np.nan) for name, each in drawn.items()}


def interval(drawn: Array) -> Array:
    """Percentile interval at LEVEL: (DRAWS, ...) -> (2, ...). Draws in which a value is undefined are left out.

    NaN where none is defined, as with a single row: it says nothing about others.
    """
    tail = 50 * (1 - LEVEL)
    defined = np.isfinite(drawn).any(axis=0)
    ends = np.nanpercentile(np.where(defined, drawn, 0), [tail, 100 - tail], axis=0)
    return np.where(defined, ends, np.nan)


def summarised(rows: Rows, statistic: Statistic, seed: int, pairs: bool = False) -> dict[str, Any]:
    """What the JSON holds of a section: its count, its values, and the intervals of all but matrices."""
    drawn = {name: each for name, each in draws(rows, statistic, seed, pairs).items() if each.ndim <= 2}
    ends = {name: plain(np.moveaxis(interval(each), 0, -1)) for name, each in drawn.items()}
    values = {name: plain(each) for name, each in value(rows, statistic).items()}
    return {"count": count(rows), **values, "interval": ends}


def as_means(means: Rows) -> Rows:
    """The statistic of sections whose metrics are plain means."""
    return means


def plain(values: Any) -> Any:
    """Rounded numbers and lists for JSON; None for what is not finite."""
    if np.ndim(values):
        return [plain(each) for each in values]
    return round(float(values), DECIMALS) if math.isfinite(values) else None


def _apply(rows: Rows, weights: Array, statistic: Statistic) -> Rows:
    means = {name: np.tensordot(weights, values, axes=1) for name, values in rows.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        return statistic(means)
