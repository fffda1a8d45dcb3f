"""Photographs as CelebA has its own: a source of pictures -> aligned faces and their landmarks.

OUT/img_align_celeba/KEY.jpg              178 x 218 JPEG; KEY-1.jpg, KEY-2.jpg, ... with all faces, the largest first
OUT/list_landmarks_align_celeba.txt       landmarks in pixels of these
OUT/align.json                            what was asked for and not found; "complete" once all of it is there
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.common.processes import run_all
from pipeline.data import images
from pipeline.data.source.annotations import LANDMARKS
from pipeline.data.source.photographs import FOLDER, Record, Source, open_source
from pipeline.inference import detector, similarity
from pipeline.inference.landmarks import CELEBA_SIZE, Points
from pipeline.models import regions

JPEG_QUALITY = 95
RECORD = "align.json"
COLUMNS = [f"{name}_{axis}" for name in regions.POINTS for axis in "xy"]


class Outcome(NamedTuple):
    """Of one photograph."""

    name: str
    rows: list[tuple[str, Points]]
    """Each face's file name, and its landmarks in pixels of that picture."""
    problem: str
    """Why there is none; empty where there are some."""


class Summary(NamedTuple):
    photographs: int
    faces: int
    problems: dict[str, str]
    """Photographs without a face, and why."""
    written: Path

    def as_dict(self) -> dict[str, Any]:
        return self._asdict() | {"written": str(self.written)}


def align(source: Path, out: Path, every: bool = False, workers: int | None = None) -> Summary:
    """Write the faces of all photographs of a source into the folder `out`, aligned as CelebA's.

    Run again after an interruption, it starts anew; when complete, it does nothing.

    Args:
        source: anything `open_source` takes.
        every: every face of a photograph, not the largest alone.
        workers: processes; None takes every processor.

    Raises:
        UserError: the source, `out`, or the extra; or no face in any photograph.
    """
    opened = open_source(source)
    asked = {"source": opened.fingerprint, "all": every}
    with files.os_errors_named(out):
        before = _previous(out, asked)
        if before.get("complete"):
            return Summary(before["photographs"], before["faces"], before["problems"], out)
        detector.check()
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        files.write_json(out / RECORD, asked | {"complete": False})
        outcomes = run_all(_align_one, (opened, out / FOLDER, every), opened.records, workers, "align", "photographs")
        summary = _summary(outcomes, out / f"{LANDMARKS}.txt")
        found = {"photographs": summary.photographs, "faces": summary.faces, "problems": summary.problems}
        files.write_json(out / RECORD, asked | found | {"complete": True})
    return summary._replace(written=out)


def write_landmarks(source: Path, workers: int | None = None) -> Summary:
    """Write the landmarks of the largest face of each photograph where `shard` finds them; the pictures stay.

    They are a .csv file, as of Kaggle's copy of CelebA, in the folder, or beside the zip.

    Raises:
        UserError: the source or the extra; a file of landmarks is there; or no face in any photograph.
    """
    opened = open_source(source)
    folder = source if source.is_dir() else source.parent
    for there in (folder / f"{LANDMARKS}{suffix}" for suffix in (".txt", ".csv")):
        if there.exists():
            raise UserError(f"{there}: has the landmarks already; move it away to make them anew")
    odd = next((record.name for record in opened.records if any(each in record.name for each in ",\r\n")), None)
    if odd is not None:
        raise UserError(f"{odd!r}: a comma or line break in its name, which a .csv file cannot hold; rename it")
    detector.check()
    with files.os_errors_named(folder):
        outcomes = run_all(_find_one, opened, opened.records, workers, "align", "photographs")
        return _summary(outcomes, folder / f"{LANDMARKS}.csv")


def _previous(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run has left in `out`; refuses a folder that holds anything else."""
    path = out / RECORD
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        same = {key: before[key] for key in asked} == asked
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{out}: is there and was not written by align; name another folder") from None
    if not same:
        raise UserError(f"{out}: holds the faces of other photographs, or of another --all; name another folder")
    return dict(before)


def _faces_in(source: Source, record: Record) -> tuple[Any, list[Points], str]:
    """A photograph as displayed, its faces, and what is wrong where there are none."""
    try:
        data = source.read(record.name)
        picture = images.to_pillow(images.from_pillow(images.open_picture(data, record.name), record.name))
    except OSError as error:
        return None, [], f"cannot be read: {error.strerror or error}"
    except UserError as error:
        return None, [], str(error).removeprefix(f"{record.name}: ")
    found = detector.find_faces(picture)
    return picture, found, "" if found else "no face found"


def _align_one(shared: tuple[Source, Path, bool], record: Record) -> Outcome:
    source, folder, every = shared
    picture, found, problem = _faces_in(source, record)
    rows = []
    for number, points in enumerate(found if every else found[:1], 1):
        move = similarity.between(points, regions.celeba(*CELEBA_SIZE))
        name = f"{record.key}-{number}.jpg" if every else f"{record.key}.jpg"
        with files.replacing(folder / name, flush=False) as temporary:
            face = similarity.warp(picture, move, CELEBA_SIZE)
            temporary.write_bytes(images.encoded(face, "JPEG", quality=JPEG_QUALITY))
        rows.append((name, move.points(points)))
    return Outcome(record.name, rows, problem)


def _find_one(source: Source, record: Record) -> Outcome:
    _, found, problem = _faces_in(source, record)
    return Outcome(record.name, [(record.name, points) for points in found[:1]], problem)


def _summary(outcomes: list[Outcome], table: Path) -> Summary:
    """Writes the landmarks of all into `table`, a .txt or .csv file as CelebA's."""
    rows = sorted(row for outcome in outcomes for row in outcome.rows)
    problems = {outcome.name: outcome.problem for outcome in sorted(outcomes) if outcome.problem}
    if not rows:
        name, problem = next(iter(problems.items()))
        raise UserError(f"no face in any of {len(outcomes)} photographs; {name}: {problem}")
    csv = table.suffix == ".csv"
    separator = "," if csv else " "
    lines = [["image_id", *COLUMNS]] if csv else [[str(len(rows))], COLUMNS]
    for name, points in rows:
        lines.append([name, *(str(round(value)) for point in regions.POINTS for value in points[point])])
    files.write_text(table, "".join(separator.join(line) + "\n" for line in lines))
    return Summary(len(outcomes), len(rows), problems, table)
