"""CelebA's annotation files: the original `.txt` forms and the `.csv` forms of the Kaggle copy."""

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.common.errors import UserError, one_line

ATTRIBUTES = "list_attr_celeba"
LANDMARKS = "list_landmarks_align_celeba"
PARTITION = "list_eval_partition"
STEMS = (ATTRIBUTES, LANDMARKS, PARTITION)
MOST_BYTES = 2**26
"""Of an annotation file; CelebA's largest has a third of it."""
LARGEST = 10**9
"""No number of an annotation is larger, positive or negative."""


class Table(NamedTuple):
    """Whole numbers per image file name, one for each column: as text with spaces, read where they are needed."""

    columns: tuple[str, ...] = ()
    rows: Mapping[str, str] = {}
    where: str = ""

    def of(self, names: Sequence[str]) -> list[str]:
        """Each image's row, or "": by path in the source, file name, or stem with `.jpg` (for `.png` copies).

        Raises:
            UserError: if a file name, without its path, is that of two images.
        """
        found = [self.rows.get(name, "") for name in names]
        if not self.rows or all(found):
            return found
        owners = {name: name for name, row in zip(names, found, strict=True) if row}
        for number, name in enumerate(names):
            base = name.rsplit("/", 1)[-1]
            row = self.rows.get(base) or self.rows.get(base.rsplit(".", 1)[0] + ".jpg", "")
            if row and not found[number]:
                other = owners.setdefault(base, name)
                if other != name:
                    raise UserError(f"{self.where}: {base} may be {other} or {name}; list them by these paths")
                found[number] = row
        if not all(found):
            listed = sum(map(bool, found))
            print(one_line(f"{self.where}: lists {listed} of the {len(names)} images"), file=sys.stderr, flush=True)
        return found


def parse(stem: str, where: str, content: bytes) -> Table:
    """Read one annotation file.

    Args:
        stem: which file it is, one of `STEMS`.
        where: its path, for messages; the ending decides between the two forms.

    Raises:
        UserError: naming file and line, when a line is malformed.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{where}: not a text file") from None
    columns, start = _header(stem, where, lines)
    rows = _rows(where, lines, start, columns)
    if start == 2 and lines[0].strip() != str(len(rows)):
        raise UserError(
            f"{where}:1: says {lines[0].strip()[:80]!r} images, but {len(rows)} are listed; is the file cut?"
        )
    for name, row in rows.items() if stem == PARTITION else ():
        if row not in ("0", "1", "2"):
            raise UserError(f"{where}: {name}: partition must be 0, 1 or 2, not {row}")
    return Table(columns, rows, where)


def landmark_names(columns: tuple[str, ...]) -> tuple[str, ...]:
    """("lefteye_x", "lefteye_y", ...) -> ("lefteye", ...)."""
    return tuple(column.removesuffix("_x") for column in columns[::2])


def _header(stem: str, where: str, lines: list[str]) -> tuple[tuple[str, ...], int]:
    """The columns, and how many lines stand before the first image."""
    if where.endswith(".csv"):
        first, *columns = [cell.strip() for cell in lines[0].split(",")] if lines else [""]
        if first != "image_id" or not columns:
            found = ",".join((first, *columns))[:60]
            raise UserError(f"{where}:1: a header that starts with 'image_id,' wanted, found {found!r}")
        start = 1
    elif stem == PARTITION:
        columns, start = ["partition"], 0
    elif len(lines) < 2:
        raise UserError(f"{where}: two header lines wanted (how many images, the columns), found {len(lines)}")
    else:
        columns, start = lines[1].split(), 2
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the column {twice[:80]!r} is there twice")
    if stem == LANDMARKS and columns != [f"{name}_{axis}" for name in landmark_names(tuple(columns)) for axis in "xy"]:
        raise UserError(f"{where}: the columns must be pairs NAME_x NAME_y, found {' '.join(columns)[:80]!r}")
    return tuple(columns), start


def _rows(where: str, lines: list[str], start: int, columns: tuple[str, ...]) -> dict[str, str]:
    separator = "," if where.endswith(".csv") else None
    rows: dict[str, str] = {}
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip():
            continue
        name, *cells = line.split(separator)
        if len(cells) != len(columns):
            raise UserError(f"{where}:{number}: {len(columns)} values after the file name wanted, found {len(cells)}")
        try:
            values = [int(cell) for cell in cells]
        except ValueError:
            raise UserError(f"{where}:{number}: whole numbers wanted, found {line.strip()[:80]!r}") from None
        if any(abs(value) > LARGEST for value in values):
            raise UserError(f"{where}:{number}: numbers up to {LARGEST:,} wanted, found {line.strip()[:80]!r}")
        if name in rows:
            raise UserError(f"{where}:{number}: {name} is listed twice")
        rows[name] = " ".join(map(str, values))
    return rows
