"""An evaluation on disk and in TensorBoard. Its files belong together, so all of them are there, or the JSON is not.

OUT/metrics.json     every number; written last
OUT/per_image.json   the rows behind the intervals, which `compare` pairs
OUT/metrics.md       the numbers as tables
OUT/*.png            figures
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from pipeline.common import files, json_text
from pipeline.common.errors import UserError
from pipeline.inference.weights import is_bundle
from pipeline.measures.effects import Rows

METRICS, PER_IMAGE, TABLE = "metrics.json", "per_image.json", "metrics.md"
FIGURES = ("reconstruction", "strips", "half_way", "elements", "effects", "path", "shapley", "pose", "factors")
"""Every figure there may be: one of an earlier evaluation does not stay."""
NAMES = (METRICS, PER_IMAGE, TABLE, *(f"{name}.png" for name in FIGURES))
NAME = "evaluation"
"""Of the temporary folder, which is in OUT."""
TRIAL = 8 * 2**20
"""Bytes that there must be room for before anything is measured; an evaluation takes up to some megabytes."""
DIGITS = 6
MOST_ROWS, MOST_COLUMNS = 50_000, 2**14
"""Of a section that is read: its resamplings fit a gigabyte."""


@contextmanager
def reserved(out: Path) -> Iterator[None]:
    """Around an evaluation: first make `out` and see that it can be written; take it away again if the block fails.

    Raises:
        UserError: if `out` is no folder, lies in a bundle, holds something else of the name of an evaluation's file,
            or has no room.
    """
    real = Path(os.path.realpath(out))
    if inside := next(filter(is_bundle, (real, *real.parents)), None):
        raise UserError(f"--out {out}: {inside} is a bundle; name a folder outside of it")
    with ExitStack() as stack:
        with _errors_named(out):
            stack.enter_context(files.making_folder(out))
            _check_names(out)
            with _temporary(out) as temporary:
                (temporary / "trial").write_bytes(bytes(TRIAL))
                files.fsync(temporary / "trial")
        yield


@contextmanager
def _errors_named(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A folder in `out` that is gone after the block, and so are those of evaluations that were killed."""
    files.remove_leftovers(out, NAME)
    temporary = out / f".{NAME}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_names(out: Path) -> None:
    """An evaluation replaces the files of an earlier one. `per_image.json` is the first that is written."""
    try:
        metrics = files.read_json(out / METRICS)
        earlier = isinstance(metrics, dict) and "per_image" in metrics
    except FileNotFoundError:
        earlier = (out / PER_IMAGE).is_file()
    except (OSError, ValueError):
        earlier = False
    for name in NAMES:
        path = out / name
        if path.is_symlink() or (path.exists() and not (earlier and path.is_file())):
            raise UserError(f"--out {out}: holds {name}, which no evaluation wrote; move it or name another folder")


def write(
    out: Path,
    result: dict[str, Any],
    rows: Mapping[str, Rows],
    figures: Mapping[str, Image],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Write everything to a temporary folder in `out`, then move it into place, the JSON last.

    `result` gets the digest of the rows, so that they cannot be taken for another evaluation's.

    Raises:
        UserError: if that is not possible; what was in `out` is then as it was.
    """
    with _errors_named(out), files.making_folder(out), _temporary(out) as temporary:
        for name, figure in figures.items():
            with files.replacing(temporary / f"{name}.png") as path:
                figure.save(path, format="PNG")
        files.write_text(temporary / PER_IMAGE, rows_as_json(rows))
        result["per_image"] = files.sha256(temporary / PER_IMAGE)
        files.write_text(temporary / TABLE, table(result))
        files.write_json(temporary / METRICS, result)
        (out / METRICS).unlink(missing_ok=True)  # a kill from here on leaves none beside figures of two evaluations
        (temporary / PER_IMAGE).replace(out / PER_IMAGE)
        for name in FIGURES:
            (out / f"{name}.png").unlink(missing_ok=True)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == METRICS):
            path.replace(out / path.name)
        files.fsync(out)


def rows_as_json(rows: Mapping[str, Rows]) -> str:
    """Section -> name -> one value or list per image, rounded to significant digits."""
    listed = {
        section: {name: _rounded(values.tolist()) for name, values in each.items()} for section, each in rows.items()
    }
    return json.dumps(listed, sort_keys=True, allow_nan=False, separators=(",", ":")) + "\n"


def read_rows(text: str | bytes) -> dict[str, Rows]:
    """Inverse of `rows_as_json`. Raises ValueError for anything else, or for more than is ever measured."""
    sections = json_text.parse(text)
    if not isinstance(sections, dict) or not all(isinstance(each, dict) and each for each in sections.values()):
        raise ValueError("sections with named columns are wanted")
    return {section: _section(section, each) for section, each in sections.items()}


def _section(section: str, columns: dict[str, Any]) -> Rows:
    try:
        rows = {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{section}: numbers are wanted, as many in each row") from None
    count = min(each.shape[0] if each.ndim else 0 for each in rows.values())
    if not 0 < count <= MOST_ROWS or any(len(each) != count or not np.isfinite(each).all() for each in rows.values()):
        raise ValueError(f"{section}: columns of as many rows are wanted, from 1 to {MOST_ROWS:,}, without a gap")
    if sum(each.size for each in rows.values()) > MOST_COLUMNS * count:
        raise ValueError(f"{section}: more than {MOST_COLUMNS:,} numbers in a row")
    return rows


def show(folder: Path, result: dict[str, Any], figures: Mapping[str, Image]) -> None:
    """Numbers and figures as TensorBoard events, at the step that the bundle was exported from.

    Raises:
        UserError: if they cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torchvision.transforms.v2.functional import pil_to_tensor

    step = result["bundle"]["step"]
    try:
        with SummaryWriter(str(folder)) as writer:
            for section, values in result.items():
                for name, value in (
                    values.items() if isinstance(values, dict) and section not in ("asked", "bundle") else ()
                ):
                    if isinstance(value, int | float) and name != "count":
                        writer.add_scalar(f"{section}/{name}", value, step)
            for name, figure in figures.items():
                writer.add_image(f"evaluation/{name}", pil_to_tensor(figure), step)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _rounded(value: Any) -> Any:
    return [_rounded(each) for each in value] if isinstance(value, list) else float(f"{value:.{DIGITS}g}")
