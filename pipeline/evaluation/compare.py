"""Two evaluations of the same faces, image by image: differences with paired bootstrap intervals."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.evaluation.output import PER_IMAGE, read_rows
from pipeline.evaluation.sections import OF_FACES, STATISTICS
from pipeline.evaluation.statistics import draws, interval, plain, value
from pipeline.evaluation.table import interval as as_interval
from pipeline.evaluation.table import number
from pipeline.measures.effects import Rows

ALIKE = {
    "version": "definitions (version)",
    "latentfuse": "versions of latentfuse",
    "shards": "test shards",
    "train_shards": "training shards",
    "image_size": "image sizes",
    "crop": "crops",
    "perceptual": "perceptual networks",
    "seed": "seeds",
}
"""What must agree, and what it is called."""
KINDS = {"seed": int, "per_image": str, "realism": dict, "factors": dict}
"""What is computed with, and what it must be."""
REALISM = ("net", "features", "count", "train_count")
"""What must agree between two `realism` sections."""


@np.errstate(all="ignore")  # what is not finite is shown as not known
def compare(a: Path, b: Path) -> list[dict[str, Any]]:
    """Every number of both evaluations.

    The rows of both are resampled alike, so what is hard about a face for both bundles cancels out.

    Returns:
        For each number its `metric`, `a`, `b`, `difference` (b - a) and, where there are rows, its `interval`.

    Raises:
        UserError: if a file cannot be read, or they are not evaluations of the same faces by the same measure.
    """
    (result_a, rows_a), (result_b, rows_b) = _read(a), _read(b)
    for key, what in ALIKE.items():
        if result_a[key] != result_b[key]:
            raise UserError(f"{a} and {b}: different {what}: {result_a[key]} and {result_b[key]}; evaluate both alike")
    if rows_a.keys() != rows_b.keys():
        raise UserError(f"{a} and {b}: sections of one only: {', '.join(sorted(rows_a.keys() ^ rows_b.keys()))}")
    found: list[dict[str, Any]] = []
    for section, rows in rows_a.items():
        _check_alike(a, b, section, rows, rows_b[section])
        found += _with_rows(section, rows, rows_b[section], result_a["seed"])
    for key in REALISM:
        here, there = (result["realism"].get(key) for result in (result_a, result_b))
        if here != there:
            raise UserError(f"{a} and {b}: realism: different {key}: {here} and {there}; evaluate both alike")
    for section in ("realism", "factors"):
        found += _without_rows(section, result_a[section], result_b[section])
    return found


def spread(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Every number of three evaluations or more, as of several seeds of one recipe, and how far they lie apart.

    Returns:
        For each number its `metric`, `values` in the order of `paths`, `mean` and `deviation`, the sample standard
        deviation; None where a value is not known.

    Raises:
        UserError: as `compare`, of the first with each of the others.
    """
    first, *others = paths
    compared = [{line["metric"]: line for line in compare(first, other)} for other in others]
    found = []
    for metric in compared[0]:
        lines = [each[metric] for each in compared if metric in each]
        if len(lines) < len(compared):  # left out in one of them, as FID with few images
            continue
        values = [lines[0]["a"], *(line["b"] for line in lines)]
        numbers = np.array(values, dtype=np.float64)  # NaN for None
        mean, deviation = numbers.mean(), numbers.std(ddof=1)
        found.append({"metric": metric, "values": values, "mean": plain(mean), "deviation": plain(deviation)})
    return found


def as_spread(numbers: list[dict[str, Any]], paths: Sequence[Path]) -> str:
    """As Markdown, a column for each evaluation; below, which is which."""
    counted = range(1, len(paths) + 1)
    lines = [f"| metric | {' | '.join(map(str, counted))} | mean | deviation |", "|---" * (len(paths) + 3) + "|"]
    for each in numbers:
        cells = [each["metric"], *map(number, [*each["values"], each["mean"], each["deviation"]])]
        lines.append(f"| {' | '.join(cells)} |")
    which = [f"{count}: {path}" for count, path in zip(counted, paths, strict=True)]
    return "\n".join([*lines, "", *which, "deviation: the sample standard deviation over these evaluations"])


def as_table(differences: list[dict[str, Any]]) -> str:
    """As Markdown; differences whose interval leaves out 0 are marked."""
    lines = ["| metric | A | B | B - A | 95 % interval | |", "|---|---|---|---|---|---|"]
    for each in differences:
        ends = each.get("interval")
        clear = ends is not None and None not in ends and (ends[0] > 0 or ends[1] < 0)
        cells = [each["metric"], *(number(each[key]) for key in ("a", "b", "difference")), as_interval(ends)]
        lines.append(f"| {' | '.join(cells)} | {'*' if clear else ''} |")
    return "\n".join([*lines, "", "\\* the interval leaves out 0"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Rows]]:
    if path.is_dir():
        raise UserError(f"{path}: a folder; name the metrics.json in it")
    try:
        result = files.read_json(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not the JSON of an evaluation: {error}") from None
    for key, kind in (dict.fromkeys(ALIKE, object) | KINDS).items():
        if not isinstance(result, dict) or key not in result:
            raise UserError(f"{path}: not an evaluation of this version ({key} is missing); evaluate again")
        if not isinstance(result[key], kind) or (key == "seed" and not 0 <= result[key] < 2**32):
            raise UserError(f"{path}: damaged: {key}: {result[key]!r:.60}; evaluate again")
    return result, _read_rows(path.with_name(PER_IMAGE), path, result["per_image"])


def _read_rows(beside: Path, path: Path, digest: str) -> dict[str, Rows]:
    try:
        content = files.read_bytes(beside, files.MOST_JSON)
    except OSError as error:
        raise UserError(f"{beside}: {error.strerror}; it is written beside {path.name} and stays with it") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{beside}: does not belong to {path}; evaluate again")
    try:
        rows = read_rows(content)
        for section, each in rows.items():
            _check_columns(section, each)
    except ValueError as error:
        raise UserError(f"{beside}: not the rows of an evaluation: {error}") from None
    return rows


def _check_columns(section: str, rows: Rows) -> None:
    """Raises ValueError unless the section's statistic can be computed of these columns."""
    try:
        value({name: values[:1] for name, values in rows.items()}, STATISTICS[section])
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"{section}: not the columns that are measured") from None


def _check_alike(a: Path, b: Path, section: str, some: Rows, others: Rows) -> None:
    if some.keys() != others.keys():
        names = ", ".join(sorted(some.keys() ^ others.keys()))
        raise UserError(f"{a} and {b}: {section}: measured differently ({names}); evaluate both alike")
    for name, values in some.items():
        if values.shape != others[name].shape:
            sizes = f"{values.shape} and {others[name].shape}"
            raise UserError(f"{a} and {b}: {section}: other counts of pairs or elements, {sizes}; evaluate both alike")


def _with_rows(section: str, some: Rows, others: Rows, seed: int) -> Iterator[dict[str, Any]]:
    statistic = STATISTICS[section]
    values = value(some, statistic), value(others, statistic)
    drawn = [draws(rows, statistic, seed, section != OF_FACES) for rows in (some, others)]
    for name in sorted(values[0]):
        if values[0][name].ndim > 1:
            continue
        ends = interval(drawn[1][name] - drawn[0][name])
        for index in np.ndindex(values[0][name].shape):
            label = f"{section} {name}" + "".join(f" {each + 1}" for each in index)
            a, b = (float(each[name][index]) for each in values)
            yield _line(label, a, b) | {"interval": plain(ends[(slice(None), *index)])}


def _without_rows(section: str, some: dict[str, Any], others: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, a in some.items():
        b = others.get(name)
        if name not in ("count", *REALISM) and all(isinstance(each, int | float) for each in (a, b)):
            yield _line(f"{section} {name}", a, b)


def _line(metric: str, a: float, b: Any) -> dict[str, Any]:
    return {"metric": metric, "a": plain(a), "b": plain(b), "difference": plain(b - a)}
