"""The global order of the data and of every random draw: functions of (seed, step) alone.

Position p = step x B + i in an endless stream; epoch p // N; one permutation per epoch. Rank r of W takes its
contiguous slice of each global batch, in micro-batches of fixed size, so neither the number of ranks, nor of
loader workers, nor a restart changes what a step sees.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.numbers import divisors


class Stream(IntEnum):
    """Independent random streams; the numbers are part of the format, never reuse one."""

    ORDER = 0
    FLIP = 1
    LAMBDA = 2
    PENALTY = 3
    HELD_OUT = 4
    NOISE = 5


def generator(seed: int, stream: Stream, step: int) -> np.random.Generator:
    """A counter-based generator keyed by (seed, stream, step)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, int(stream), step))))


@lru_cache(maxsize=2)  # a batch touches at most the end of one epoch and the start of the next, or many tiny ones
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, Stream.ORDER, epoch).permutation(count)


@dataclass(frozen=True)
class Order:
    """Which images a rank sees at which step."""

    count: int
    """N, images in the split."""
    seed: int
    global_batch_size: int
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.world_size * self.micro_batch_size):
            per_rank, rest = divmod(self.global_batch_size, self.world_size)
            micro_batches = self.global_batch_size // self.micro_batch_size
            would_do = [] if rest else divisors(per_rank)[1:]
            what = "a micro_batch_size of" if would_do else "a number of ranks of"
            advice = f"{what} {', '.join(map(str, would_do or divisors(micro_batches)))} would do"
            raise UserError(
                f"training.global_batch_size: {self.global_batch_size} is not {self.world_size} ranks x accumulation x "
                f"micro_batch_size {self.micro_batch_size}; {advice}"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches per step and rank."""
        return self.global_batch_size // (self.world_size * self.micro_batch_size)

    def indices(self, step: int) -> np.ndarray:
        """(B,) int64: the images of the whole global batch of `step` (from 0)."""
        positions = step * self.global_batch_size + np.arange(self.global_batch_size)
        epochs, within = np.divmod(positions, self.count)
        parts = [_permutation(self.seed, int(e), self.count)[within[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def flips(self, step: int) -> np.ndarray:
        """(B,) bool: which images of the global batch are mirrored."""
        return generator(self.seed, Stream.FLIP, step).random(self.global_batch_size) < 0.5

    def slices(self) -> list[slice]:
        """This rank's micro-batches, as slices of the global batch."""
        first = self.rank * self.accumulation
        size = self.micro_batch_size
        return [slice(q * size, (q + 1) * size) for q in range(first, first + self.accumulation)]
