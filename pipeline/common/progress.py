"""Progress of long work: a bar on a terminal, a plain line now and then otherwise."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PLAIN_INTERVAL_SECONDS = 10.0


def progress(
    items: Iterable[T], description: str, total: int, unit: str, count: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """Yield `items`, showing on standard error how many units of `total` have been taken: `effects: 64 of 128 pairs`.

    Args:
        total: in units, as `unit` names them in the plural.
        count: the units of one item, as a batch of images has several.
    """
    done = 0
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), unit, TimeRemainingColumn(), "left")
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total)
            for item in items:
                yield item
                done += count(item)
                bar.update(task, completed=done)
        return
    last = time.monotonic()
    for item in items:
        yield item
        done += count(item)
        if time.monotonic() - last > PLAIN_INTERVAL_SECONDS:
            last = time.monotonic()
            print(f"{description}: {done} of {total} {unit}", file=sys.stderr, flush=True)
