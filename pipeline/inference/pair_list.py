"""Lists of pairs to fuse: a CSV file with a line `a,b` or `a,b,lambda`, and a pair in each further line."""

import csv
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.inference.fuse import parse_lambda

MOST_BYTES = 16 * 2**20
"""Of a list."""
MOST_PAIRS = 100_000
HEADERS = (["a", "b"], ["a", "b", "lambda"])
LONGEST_STEM = 24
"""Characters of each photograph's name in that of their picture."""


class Pair(NamedTuple):
    """Two photographs, and how they are fused."""

    where: str
    """FILE:LINE, for messages."""
    a: Path
    b: Path
    lambda_: float | list[float] | None
    """None: the line says nothing of it."""
    name: str
    """Of the picture, without ending; different for each pair."""


def read_pairs(path: Path, elements: int) -> list[Pair]:
    """The pairs of a list. Paths of photographs are relative to the folder of the list.

    Args:
        elements: of the bundle, whose Lambdas have one number or that many.

    Raises:
        UserError: naming file and line: it is no such list, or too long, or a photograph is not there.
    """
    try:
        text = files.read_bytes(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    pairs: list[Pair] = []
    try:
        header = [cell.strip().lower() for cell in next(lines, [])]
        if header not in HEADERS:
            raise UserError(f"{path}:1: a first line `a,b` or `a,b,lambda` is wanted, not {','.join(header)[:60]!r}")
        for cells in lines:
            if not any(cells):
                continue
            if len(pairs) == MOST_PAIRS:
                raise UserError(f"{path}:{lines.line_num}: more than {MOST_PAIRS:,} pairs; make several lists")
            pairs.append(_pair(path, f"{path}:{lines.line_num}", cells, header, elements, len(pairs) + 1))
    except csv.Error as error:
        raise UserError(f"{path}:{lines.line_num}: not CSV: {error}") from None
    if not pairs:
        raise UserError(f"{path}: holds no pair")
    return pairs


def _pair(path: Path, where: str, cells: list[str], header: list[str], elements: int, number: int) -> Pair:
    if len(cells) != len(header):
        hint = "; put several lambdas in quotes" if len(cells) > len(header) == 3 else ""
        raise UserError(f"{where}: {len(header)} values are wanted ({','.join(header)}), not {len(cells)}{hint}")
    photographs = [path.parent / cell for cell in cells[:2]]
    for name, photograph in zip(header, photographs, strict=False):
        if not os.path.isfile(photograph):  # pathlib raises for names that no file can have
            raise UserError(f"{where}: {name}: {str(photograph)[:200]}: no such file")
    stems = [re.sub(r"[^\w-]+", "_", photograph.stem)[:LONGEST_STEM] for photograph in photographs]
    lambda_ = parse_lambda(cells[2], elements, f"{where}: lambda") if cells[2:] and cells[2] else None
    return Pair(where, photographs[0], photographs[1], lambda_, f"{number:04d}-{stems[0]}-{stems[1]}")
