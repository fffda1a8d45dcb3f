"""CelebA's annotation files: the original `.txt` forms and the `.csv` forms of the Kaggle copy."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError

ATTRIBUTES = "list_attr_celeba"
LANDMARKS = "list_landmarks_align_celeba"
PARTITION = "list_eval_partition"
STEMS = (ATTRIBUTES, LANDMARKS, PARTITION)


@dataclass(frozen=True)
class Table:
    """Integers per image file name, one for each column."""

    columns: tuple[str, ...] = ()
    rows: dict[str, tuple[int, ...]] | None = None

    def of(self, names: Sequence[str]) -> list[tuple[int, ...] | None]:
        """Each image's row: by its path in the source, its file name, or its stem with `.jpg` (for `.png` copies)."""
        rows = self.rows or {}

        def elsewhere(name: str) -> tuple[int, ...] | None:
            base = name.rsplit("/", 1)[-1]
            return rows.get(base) or rows.get(base.rsplit(".", 1)[0] + ".jpg")

        found = list(map(rows.get, names))
        return found if all(found) else [row or elsewhere(name) for name, row in zip(names, found, strict=True)]


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
    return table


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


class _Integers(dict[str, int]):
    """Text -> integer, each converted once: CelebA's 10 million cells are a few hundred numbers."""

    def __missing__(self, cell: str) -> int:
        value = self[cell] = int(cell)
        return value


def _rows(
    where: str, lines: list[str], start: int, columns: tuple[str, ...], separator: str | None
) -> dict[str, tuple[int, ...]]:
    lines = lines[start:]
    rows = _well_formed(lines, columns, separator)
    if rows is not None:
        return rows
    rows, integers = {}, _Integers()
    for number, line in enumerate(lines, start + 1):
        if not line.strip():
            continue
        name, *cells = line.split(separator)
        if len(cells) != len(columns):
            raise UserError(f"{where}:{number}: {len(columns)} values after the file name wanted, found {len(cells)}")
        try:
            values = tuple(map(integers.__getitem__, cells))
        except ValueError:
            raise UserError(f"{where}:{number}: whole numbers wanted, found {line.strip()[:80]!r}") from None
        if name in rows:
            raise UserError(f"{where}:{number}: {name} is listed twice")
        rows[name] = values
    return rows


def _well_formed(
    lines: list[str], columns: tuple[str, ...], separator: str | None
) -> dict[str, tuple[int, ...]] | None:
    """The rows, all cells at once; None where a line is empty or malformed: one by one finds which."""
    cells = (separator or " ").join(lines).split(separator)
    names = cells[:: len(columns) + 1]
    if len(cells) != len(lines) * (len(columns) + 1) or not all(map(str.startswith, lines, names)):
        return None
    del cells[:: len(columns) + 1]
    values = map(_Integers().__getitem__, cells)
    try:
        rows = dict(zip(names, zip(*[values] * len(columns), strict=True), strict=True))
    except ValueError:
        return None
    return rows if len(rows) == len(lines) else None


def _check(stem: str, where: str, table: Table) -> None:
    if stem == PARTITION:
        rows = table.rows or {}
        wrong = set(rows.values()) - {(0,), (1,), (2,)}
        for name, row in rows.items() if wrong else ():
            if row in wrong:
                raise UserError(f"{where}: {name}: partition must be 0, 1 or 2, not {' '.join(map(str, row))}")
    if stem == LANDMARKS:
        pairs = list(zip(table.columns[::2], table.columns[1::2], strict=False))
        if len(table.columns) % 2 or any(x[:-2] != y[:-2] or (x[-2:], y[-2:]) != ("_x", "_y") for x, y in pairs):
            raise UserError(f"{where}: the columns must be pairs NAME_x NAME_y, found {' '.join(table.columns)[:80]!r}")
