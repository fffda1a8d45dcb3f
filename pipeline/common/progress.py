"""Progress of long work: a bar on a terminal, a plain line now and then otherwise."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PLAIN_INTERVAL_SECONDS = 10.0


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing on standard error how many of `total` have been taken."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description=description, total=total, console=Console(stderr=True))
        return
    last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > PLAIN_INTERVAL_SECONDS:
            last = time.monotonic()
            print(f"{description}: {done}{f' of {total}' if total else ''}", file=sys.stderr, flush=True)
