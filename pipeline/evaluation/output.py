"""An evaluation on disk and in TensorBoard. Its files belong together, so all of them are there, or the JSON is not.

OUT/metrics.json     every number; written last
OUT/per_image.json   the rows behind the intervals, which `compare` pairs
OUT/metrics.md       the numbers as tables
OUT/*.png            figures
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.measures.effects import Rows

METRICS, PER_IMAGE, TABLE = "metrics.json", "per_image.json", "metrics.md"
FIGURES = ("reconstruction", "strips", "half_way", "elements", "effects", "path", "shapley", "pose", "factors")
"""Every figure there may be: one of an earlier evaluation does not stay."""
DIGITS = 6


def write(
    out: Path,
    result: dict[str, Any],
    rows: Mapping[str, Rows],
    figures: Mapping[str, Image],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Write everything to a temporary folder beside `out`, then move it there, the JSON last.

    `result` gets the digest of the rows, so that they cannot be taken for another evaluation's.

    Raises:
        UserError: if that is not possible; what was in `out` is then as it was.
    """
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of an evaluation that was killed
        temporary.mkdir(parents=True)
        for name, figure in figures.items():
            with files.replacing(temporary / f"{name}.png") as path:
                figure.save(path, format="PNG")
        files.write_text(temporary / PER_IMAGE, rows_as_json(rows))
        result["per_image"] = files.sha256(temporary / PER_IMAGE)
        files.write_text(temporary / TABLE, table(result))
        files.write_json(temporary / METRICS, result)
        out.mkdir(parents=True, exist_ok=True)
        (out / METRICS).unlink(missing_ok=True)  # a kill from here on leaves none beside figures of two evaluations
        for name in FIGURES:
            (out / f"{name}.png").unlink(missing_ok=True)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == METRICS):
            path.replace(out / path.name)
        files.fsync(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def rows_as_json(rows: Mapping[str, Rows]) -> str:
    """Section -> name -> one value or list per image, rounded to significant digits."""
    listed = {
        section: {name: _rounded(values.tolist()) for name, values in each.items()} for section, each in rows.items()
    }
    return json.dumps(listed, sort_keys=True, allow_nan=False, separators=(",", ":")) + "\n"


def read_rows(text: str) -> dict[str, Rows]:
    """Inverse of `rows_as_json`. Raises ValueError, AttributeError or TypeError for anything else."""
    sections = json.loads(text)
    return {
        section: {name: np.array(values, dtype=np.float64) for name, values in each.items()}
        for section, each in sections.items()
    }


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
