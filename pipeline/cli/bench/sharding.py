"""How fast photographs become shards, beside the bare decoder on all processes, and beside tar."""

import io
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.common.errors import UserError
from pipeline.common.files import os_errors_named
from pipeline.common.processes import default_workers, run_tasks
from pipeline.data.shards.writing import write_shards
from pipeline.data.source import annotations
from pipeline.data.source.celeba import FOLDER, Record, open_source

ROUNDS = 3
SPLIT = "0.1"
IMAGES_PER_TASK = 64
HELD_BYTES = 2**30
"""The decoder's images are held in memory: the first so many bytes of them."""


@dataclass(frozen=True)
class Report:
    """Images per second: the median of rounds that take turns; `tar` is None where there is no tar command."""

    images: int
    workers: int
    folder: str
    decoder: float
    validated: float
    unvalidated: float
    tar: float | None

    @property
    def of_decoder(self) -> float:
        """Sharding with full validation, as a share of what the decoder does with the same processes."""
        return self.validated / self.decoder

    @property
    def times_tar(self) -> float | None:
        """How many times as long as tar sharding without validation takes."""
        return self.tar / self.unvalidated if self.tar else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"of_decoder": self.of_decoder, "times_tar": self.times_tar}


def measure(path: Path, count: int, workers: int | None, folder: Path | None) -> Report:
    """Shard the first `count` images of a source, decode them, and pack them with tar, three times each.

    Args:
        path: anything `open_source` takes. It is sharded as it is; where only some are wanted, from a copy of these.
        workers: processes; None takes every processor.
        folder: on the disk to write to, about four times the size of the images; None takes the system's temporary one.

    Raises:
        UserError: the source or the folder cannot be used, or an image is unusable.
    """
    workers = workers or default_workers()
    disk = folder or Path(tempfile.gettempdir())
    with os_errors_named(disk), tempfile.TemporaryDirectory(prefix="latentfuse-bench-", dir=disk) as name:
        place = Path(name)
        path, files = _lay_out(path, count, place / "source")
        ways: dict[str, Callable[[], float]] = {
            "validated": lambda: _shard(path, place / "out", len(files), workers, validate=True),
            "decoder": lambda: _decoder(_held(files), workers),
            "unvalidated": lambda: _shard(path, place / "out", len(files), workers, validate=False),
        }
        if shutil.which("tar"):
            ways["tar"] = lambda: _tar(place / "source" / FOLDER, place / "faces.tar", len(files))
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                rates[name].append(way())
    medians = {name: statistics.median(each) for name, each in rates.items()}
    tar = medians.pop("tar", None)
    return Report(len(files), workers, str(disk), **medians, tar=tar)


def as_text(report: Report) -> str:
    """A table for people."""
    lines = [
        f"{report.images} images, {report.workers} workers, in {report.folder}; images/s:",
        f"{'decoding all, bytes in memory':<40}{report.decoder:>9.0f}",
        f"{'shard':<40}{report.validated:>9.0f}   {report.of_decoder:.0%} of that",
        f"{'shard --no-validate':<40}{report.unvalidated:>9.0f}",
    ]
    if report.tar is None:
        lines.append("tar is not installed: no comparison with it")
    else:
        lines.append(f"{'tar':<40}{report.tar:>9.0f}   shard --no-validate: {report.times_tar:.2f}x its time")
    return "\n".join(lines)


def _lay_out(path: Path, count: int, folder: Path) -> tuple[Path, list[Path]]:
    """Write the first images of a source as files, for tar; return what to shard (itself, or a copy) and the files."""
    source = open_source(path)
    records = source.records[:count]
    files = [folder / FOLDER / record.name for record in records]
    for record, file in zip(records, files, strict=True):
        try:
            data, _ = source.read(record.name)
        except OSError as error:
            raise UserError(f"{source.location}: {record.name} cannot be read: {error.strerror or error}") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    if len(records) == len(source.records):
        return path, files
    _write_annotations(records, folder)
    return folder, files


def _held(files: list[Path]) -> list[bytes]:
    """The first images, in memory while the decoder is timed and no longer: forking so much costs the others time."""
    held: list[bytes] = []
    size = 0
    for file in files:
        data = file.read_bytes()
        size += len(data)
        if held and size > HELD_BYTES:
            break
        held.append(data)
    return held


def _write_annotations(records: list[Record], folder: Path) -> None:
    """The rows of these images, so that as much is known of them as in the source."""
    attributes = {each.name: each.attribute_values for each in records if each.attribute_values}
    landmarks = {each.name: each.landmark_values for each in records if each.landmark_values}
    names = next((each.attribute_names for each in records if each.attribute_names), ())
    points = next((each.landmark_names for each in records if each.landmark_names), ())
    axes = [f"{point}_{axis}" for point in points for axis in "xy"]
    for stem, columns, rows in (
        (annotations.ATTRIBUTES, names, attributes),
        (annotations.LANDMARKS, axes, landmarks),
    ):
        if rows:
            lines = [["image_id", *columns], *([name, *row.split()] for name, row in rows.items())]
            (folder / f"{stem}.csv").write_text("".join(",".join(line) + "\n" for line in lines), encoding="utf-8")


def _shard(path: Path, out: Path, count: int, workers: int, *, validate: bool) -> float:
    """Images per second of the whole command, but for the start of Python."""
    began = time.perf_counter()
    summary = write_shards(path, out, split=SPLIT, workers=workers, validate=validate, max_rejected=count)
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    for rejected in summary.rejected:
        raise UserError(f"{path}: {rejected.file}: {rejected.reason}; take a source without unusable images")
    if summary.samples != count:
        raise UserError(f"{path}: {summary.samples} images in the shards, {count} wanted; did the source change?")
    return count / seconds


def _decoder(held: list[bytes], workers: int) -> float:
    """Images per second of Pillow alone, from the first image that any process starts to the last that ends."""
    spans = [held[start : start + IMAGES_PER_TASK] for start in range(0, len(held), IMAGES_PER_TASK)]
    times = list(run_tasks(_decode, spans, range(len(spans)), workers))
    return len(held) / (max(ended for _, ended in times) - min(began for began, _ in times))


def _decode(spans: list[list[bytes]], number: int) -> tuple[float, float]:
    began = time.perf_counter()
    for data in spans[number]:
        Image.open(io.BytesIO(data)).load()
    return began, time.perf_counter()


def _tar(folder: Path, archive: Path, count: int) -> float:
    """Images per second of `tar`, which writes and does not wait for the disk."""
    began = time.perf_counter()
    done = subprocess.run(["tar", "cf", archive, "-C", folder, "."], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise UserError(f"tar: {done.stderr.strip().splitlines()[-1:]}; take tar off the PATH to go without it")
    archive.unlink()
    return count / seconds
