"""JSON that others wrote: as deep as anything of ours, every name once, numbers that Python can compute with."""

import json
from typing import Any

MOST_LEVELS = 32
"""Lists and objects within each other."""
MOST_DIGITS = 40
"""Of a whole number; thousands of them are more than a float can hold, or than Python prints."""


def parse(content: bytes | str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is none, is nested too deeply, has a name twice in an object, or a number that is not finite.
    """
    try:
        value = json.loads(
            content, object_pairs_hook=_each_once, parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {MOST_LEVELS} levels") from None
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        level = [inner for each in level for inner in _items(each) if isinstance(inner, list | dict)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MOST_LEVELS} levels")


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in values if names.count(name) > 1)
        raise ValueError(f"{twice!r:.80} is there twice")
    return values


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")) or number != number:
        raise ValueError(f"{text:.80} is not a finite number")
    return number
