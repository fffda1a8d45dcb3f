"""How the ranks of a job share an evaluation: each measures some of the batches, and all of them get every result."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from pipeline.common.progress import progress

T = TypeVar("T")
Item = TypeVar("Item")


class Ranks(Protocol):
    """The processes of a job. All of them call the same methods in the same order.

    A mistake or a signal on one of them ends the work of all, in order.
    """

    @property
    def rank(self) -> int:
        """This process, from 0; rank 0 is the main one, which alone writes and prints."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    def together(self, work: Callable[[], T]) -> T:
        """Every rank does `work`; where it fails on one, all of them stop."""

    def on_main(self, work: Callable[[], T]) -> T:
        """Rank 0 does `work`; its result, small and simple, is handed to all of them."""

    def gathered(self, mine: T) -> list[T]:
        """What every rank hands in, by rank, on all of them: simple values, and tensors on the CPU."""


class Alone:
    """One process, which shares with nobody."""

    rank, world_size = 0, 1

    def together(self, work: Callable[[], T]) -> T:
        return work()

    def on_main(self, work: Callable[[], T]) -> T:
        return work()

    def gathered(self, mine: T) -> list[T]:
        return [mine]


def share(
    ranks: Ranks,
    work: Callable[[Item], T],
    items: Sequence[Item],
    name: str,
    unit: str,
    count: Callable[[Item], int] = lambda _: 1,
) -> list[T]:
    """What `work` gives for each of the items, in their order, on every rank. Rank r does items r, r + W, r + 2W, ...

    Args:
        work: gives what `Ranks.gathered` takes.
        name, unit, count: for the progress that the main rank shows of its own ones, as `progress` takes them.
    """
    mine = items[ranks.rank :: ranks.world_size]
    shown = mine if ranks.rank else progress(mine, name, sum(map(count, mine)), unit, count)
    found = ranks.together(lambda: [work(item) for item in shown])
    parts = ranks.gathered(found)
    return [parts[number % ranks.world_size][number // ranks.world_size] for number in range(len(items))]
