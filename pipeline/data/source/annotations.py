"""CelebA's annotation files: the original `.txt` forms and the `.csv` forms of the Kaggle copy."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat

from pipeline.common.errors import UserError

ATTRIBUTES = "list_attr_celeba"
LANDMARKS = "list_landmarks_align_celeba"
PARTITION = "list_eval_partition"
STEMS = (ATTRIBUTES, LANDMARKS, PARTITION)


_NUMBER = "(?:0|-?[1-9][0-9]*+)"


@dataclass(frozen=True)
class Table:
    """Whole numbers per image file name, one for each column: as text with spaces, read where they are needed."""

    columns: tuple[str, ...] = ()
    rows: dict[str, str] = field(default_factory=dict)
    where: str = ""
    """Its file, for messages."""

    def of(self, names: Sequence[str]) -> list[str]:
        """Each image's row, or nothing: by path in the source, file name, or stem with `.jpg` (for `.png` copies).

        Raises:
            UserError: if a file name, without its path, is that of two images.
        """
        rows = self.rows
        if not rows:
            return [""] * len(names)
        found = list(map(rows.get, names, repeat("")))
        if all(found):
            return found
        served = {name: name for name, row in zip(names, found, strict=True) if row}
        for place, name in enumerate(names):
            base = name.rsplit("/", 1)[-1]
            if not found[place] and (row := rows.get(base) or rows.get(base.rsplit(".", 1)[0] + ".jpg", "")):
                other = served.setdefault(base, name)
                if other != name:
                    raise UserError(f"{self.where}: {base} may be {other} or {name}; list them by these paths")
                found[place] = row
        if not all(found):
            listed = sum(map(bool, found))
            print(f"{self.where}: lists {listed} of the {len(names)} images", file=sys.stderr, flush=True)
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
    if where.endswith(".csv"):
        table = _parse_csv(where, lines)
    elif stem == PARTITION:
        table = Table(("partition",), _rows(where, lines, 0, ("partition",), None))
    else:
        table = _parse_txt(where, lines)
    _check(stem, where, table)
    return replace(table, where=where)


def landmark_names(columns: tuple[str, ...]) -> tuple[str, ...]:
    """("lefteye_x", "lefteye_y", ...) -> ("lefteye", ...)."""
    return tuple(column.removesuffix("_x") for column in columns[::2])


def _parse_txt(where: str, lines: list[str]) -> Table:
    if len(lines) < 2:
        raise UserError(
            f"{where}: two header lines wanted (the number of images, the column names), found {len(lines)}"
        )
    columns = tuple(lines[1].split())
    rows = _rows(where, lines, 2, columns, None)
    if lines[0].strip() != str(len(rows)):
        raise UserError(f"{where}:1: says {lines[0].strip()!r} images, but {len(rows)} are listed; is the file cut?")
    return Table(columns, rows)


def _parse_csv(where: str, lines: list[str]) -> Table:
    header = [cell.strip() for cell in lines[0].split(",")] if lines else []
    if len(header) < 2 or header[0] != "image_id":
        raise UserError(f"{where}:1: a header that starts with 'image_id,' wanted, found {','.join(header)[:60]!r}")
    columns = tuple(header[1:])
    return Table(columns, _rows(where, lines, 1, columns, ","))


def _rows(where: str, lines: list[str], start: int, columns: tuple[str, ...], separator: str | None) -> dict[str, str]:
    lines = lines[start:]
    rows = _alike(lines, len(columns), separator)
    if rows is not None:
        return rows
    rows = {}
    for number, line in enumerate(lines, start + 1):
        if not line.strip():
            continue
        name, *cells = line.split(separator)
        if len(cells) != len(columns):
            raise UserError(f"{where}:{number}: {len(columns)} values after the file name wanted, found {len(cells)}")
        try:
            values = " ".join(str(int(cell)) for cell in cells)
        except ValueError:
            raise UserError(f"{where}:{number}: whole numbers wanted, found {line.strip()[:80]!r}") from None
        if name in rows:
            raise UserError(f"{where}:{number}: {name} is listed twice")
        rows[name] = values
    return rows


def _alike(lines: list[str], columns: int, separator: str | None) -> dict[str, str] | None:
    """The rows, all at once; None where some line is not as usual, or malformed: one by one finds which."""
    text = "\n".join(lines)
    if separator:
        if " " in text:
            return None
        text = text.replace(separator, " ")
    numbers = " ++".join([_NUMBER] * columns)
    rows = dict(re.findall(rf"^([^ \n]++) ++({numbers}) *+$", text, re.MULTILINE))
    return rows if columns and len(rows) == len(lines) else None


def _check(stem: str, where: str, table: Table) -> None:
    if stem == PARTITION:
        wrong = set(table.rows.values()) - {"0", "1", "2"}
        for name, row in table.rows.items() if wrong else ():
            if row in wrong:
                raise UserError(f"{where}: {name}: partition must be 0, 1 or 2, not {row}")
    if stem == LANDMARKS:
        pairs = list(zip(table.columns[::2], table.columns[1::2], strict=False))
        if len(table.columns) % 2 or any(x[:-2] != y[:-2] or (x[-2:], y[-2:]) != ("_x", "_y") for x, y in pairs):
            raise UserError(f"{where}: the columns must be pairs NAME_x NAME_y, found {' '.join(table.columns)[:80]!r}")
