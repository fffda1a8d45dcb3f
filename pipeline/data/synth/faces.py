"""Painted faces with known factors, written as CelebA is distributed: the data set that needs no download.

OUT/img_align_celeba/000001.jpg ...      178 x 218 JPEG
OUT/list_attr_celeba.txt                 1 or -1 for each attribute
OUT/list_landmarks_align_celeba.txt      true landmarks, in pixels
OUT/list_eval_partition.txt              0 train, 1 validation, 2 test
OUT/list_factors.csv                     the factors themselves
OUT/synth.json                           what was asked for; "complete" once all of it is there
"""

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.common.processes import run_tasks
from pipeline.common.progress import progress
from pipeline.data.images import encoded
from pipeline.data.synth.factors import Factors, attributes, draw_factors
from pipeline.data.synth.head import landmarks
from pipeline.data.synth.painting import paint

__all__ = ["Factors", "draw_factors", "landmarks", "paint", "write_faces"]

VERSION = 2  # of the painted bytes: raise it whenever the same seed paints another picture
JPEG_QUALITY = 92
MAX_COUNT = 999_999  # CelebA's file names have six digits
VALIDATION_SHARE = TEST_SHARE = 0.1

_CHUNK = 64  # images of one task of a worker
_LANDMARKS = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
_Rows = tuple[str, str, str]
"""One image's line in the files of attributes, landmarks and factors."""


def write_faces(out: Path, count: int, *, seed: int = 0, workers: int = 1) -> None:
    """Paint `count` faces into the folder `out`, in CelebA's layout.

    Image i depends on (seed, i) alone, not on `count` or `workers`. A rerun keeps the images that are there, a larger
    `count` adds to them; the partition file then gives the first 80 % to train, the last 10 % to test.

    Args:
        out: made where it is missing.
        count: in [1, 999999].
        seed: in [0, 2**63).
        workers: processes, at least 1.

    Raises:
        UserError: an argument is out of range, `out` can't be written, or holds something else.
    """
    limits = {"count": (count, 1, MAX_COUNT), "seed": (seed, 0, 2**63 - 1), "workers": (workers, 1, 1024)}
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise UserError(f"synth: {name} is {value}, but must be from {low} to {high}")
    try:
        _write(out, count, seed, workers)
    except OSError as error:
        raise UserError(f"synth: cannot write to {out}: {error.strerror or error}") from error


def _write(out: Path, count: int, seed: int, workers: int) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"synth: {out} is a file; name a folder to write to")
    _check_previous(out, count, seed)
    images = out / "img_align_celeba"
    images.mkdir(parents=True, exist_ok=True)
    for leftover in images.glob(".??????-????????.tmp.jpg"):  # as `replacing` names them
        leftover.unlink(missing_ok=True)
    asked = {"version": VERSION, "seed": seed, "count": count}
    # Written first too: images of an interrupted run must not be taken for those of another seed.
    files.write_json(out / "synth.json", {**asked, "complete": False})
    tasks = [range(start, min(start + _CHUNK, count + 1)) for start in range(1, count + 1, _CHUNK)]
    with closing(run_tasks(_paint_chunk, (images, seed), tasks, workers)) as chunks:
        painted = sorted(progress(chunks, "synth", count, "faces", lambda chunk: len(chunk[1])))
    _write_annotations(out, [row for _, rows in painted for row in rows])
    files.write_json(out / "synth.json", {**asked, "complete": True})


def _check_previous(out: Path, count: int, seed: int) -> None:
    """Refuse a folder that holds anything but a beginning of what is asked for."""
    record = out / "synth.json"
    if not record.exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"synth: {out} is not empty and was not painted by synth; name another folder")
        return
    try:
        previous: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        found = {name: int(previous[name]) for name in ("version", "seed", "count")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"synth: {record} is damaged; delete {out} and paint it again") from error
    if found["version"] != VERSION:
        raise UserError(
            f"synth: {out} was painted by version {found['version']} of synth, this is {VERSION}; name another folder"
        )
    if found["seed"] != seed:
        raise UserError(f"synth: {out} holds faces of seed {found['seed']}, not {seed}; name another folder")
    if found["count"] > count:
        raise UserError(f"synth: {out} holds {found['count']} faces, more than count {count}; name another folder")


def _paint_chunk(folder: tuple[Path, int], indices: range) -> tuple[int, list[_Rows]]:
    """Paint those images that are not there yet; the first index, and what the annotation files say of each."""
    (images, seed), rows = folder, []
    for index in indices:
        factors, path = draw_factors(seed, index), images / f"{index:06d}.jpg"
        if not path.exists():
            # Not flushed: a picture that a crash of the machine loses is painted again, or found by `shard`.
            with files.replacing(path, flush=False) as temporary:
                temporary.write_bytes(encoded(paint(factors), "JPEG", quality=JPEG_QUALITY))
        rows.append(_annotate(path.name, factors))
    return indices.start, rows


def _annotate(name: str, factors: Factors) -> _Rows:
    signs = " ".join(" 1" if present else "-1" for present in attributes(factors).values())
    places = " ".join(f"{x} {y}" for x, y in landmarks(factors).values())
    values = ",".join(str(getattr(factors, field.name)) for field in dataclasses.fields(Factors))
    return f"{name} {signs}", f"{name} {places}", f"{name},{values}"


def _write_annotations(out: Path, rows: list[_Rows]) -> None:
    count = len(rows)
    names = " ".join(attributes(draw_factors(0, 0)))
    columns = ",".join(["image_id", *(field.name for field in dataclasses.fields(Factors))])
    held_out = round(TEST_SHARE * count)
    train = count - held_out - round(VALIDATION_SHARE * count)
    parts = [0 if index < train else 1 if index < count - held_out else 2 for index in range(count)]
    signs, places, values = zip(*rows, strict=True)
    tables = {
        "list_attr_celeba.txt": [str(count), names, *signs],
        "list_landmarks_align_celeba.txt": [str(count), _LANDMARKS, *places],
        "list_eval_partition.txt": [f"{index:06d}.jpg {part}" for index, part in enumerate(parts, 1)],
        "list_factors.csv": [columns, *values],
    }
    for name, lines in tables.items():
        files.write_text(out / name, "\n".join(lines) + "\n")
