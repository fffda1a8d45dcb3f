"""Write shards: which image goes where is settled first, then every shard is written on its own.

A shard's bytes depend on its records and the options alone, so they are the same for any number of workers and
after any interruption. Order on disk: plan.json, then tar and index of each shard, then manifest.json of each split.
"""

import fcntl
import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.data.celeba import Record, Source, open_source
from pipeline.data.packing import Options, Task, reject_at_most, shard_entry, write_manifest, write_shard
from pipeline.data.pool import run_tasks
from pipeline.data.shards import (
    MANIFEST,
    SCHEMA,
    Manifest,
    Rejected,
    ShardError,
    os_errors_named,
    read_index,
    shard_name,
)
from pipeline.data.splits import split_records
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.progress import progress

PLAN = "plan.json"
LOCK_PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class SplitSummary:
    """One split as it is on disk; `written` of its shards are new, the others were there."""

    folder: Path
    samples: int
    shards: int
    written: int
    bytes: int
    content_hash: str
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class Summary:
    """What `write_shards` made, or found made."""

    splits: dict[str, SplitSummary]

    @property
    def samples(self) -> int:
        """Samples in all splits."""
        return sum(split.samples for split in self.splits.values())

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Rejected inputs of all splits."""
        return tuple(rejected for split in self.splits.values() for rejected in split.rejected)

    @property
    def written(self) -> int:
        """Shards written by this call; 0 when all were there."""
        return sum(split.written for split in self.splits.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        splits = {name: asdict(split) | {"folder": str(split.folder)} for name, split in self.splits.items()}
        return {"samples": self.samples, "written": self.written, "splits": splits}


def write_shards(
    source: Path,
    out: Path,
    *,
    split: str = "paper",
    samples_per_shard: int = 1000,
    image_size: int | None = None,
    crop: int | None = None,
    quality: int = 90,
    workers: int | None = None,
    max_rejected: int = 0,
) -> Summary:
    """Write the images of `source` as shards into `out/train`, `out/test` and, for `official`, `out/validation`.

    Shards that are finished are left as they are, so running it again continues or does nothing.

    Args:
        source: anything `open_source` takes.
        split: `paper` (the last 2,599 are test), `official` (partition file), or the test fraction, as "0.1".
        image_size: None passes image bytes through untouched; else the side in pixels of a re-encoded square.
        crop: side in pixels of the centre square that is cut before resizing; None takes the shorter side.
        quality: of re-encoded JPEGs, 1 to 100.
        workers: processes; None takes every processor.
        max_rejected: how many unusable images are tolerated. They leave a gap in their shard, nothing moves up.

    Raises:
        UserError: anything wrong with the source, the options or the disk, or more rejected than `max_rejected`.
    """
    options = _options(split, samples_per_shard, image_size, crop, quality)
    opened = open_source(source)
    splits = split_records(opened.records, split)
    with os_errors_named(out):
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            _settle_plan(out, opened, options, list(splits))
            tasks = {name: _tasks(out / name, records, samples_per_shard) for name, records in splits.items()}
            _remove_leftovers([out, *(out / name for name in splits)])
            unfinished = [task for shards in tasks.values() for task in shards if not _is_finished(task.path)]
            total = sum(len(task.records) for task in unfinished)
            with closing(_written_images(opened, options, unfinished, workers)) as images:
                for _ in progress(images, "images", total):
                    pass
            return _finish(out, opened, options, tasks, {task.path for task in unfinished}, max_rejected)


def _options(split: str, samples_per_shard: int, image_size: int | None, crop: int | None, quality: int) -> Options:
    if samples_per_shard < 1:
        raise UserError(f"samples per shard: {samples_per_shard}; at least 1 wanted")
    if image_size is not None and not 16 <= image_size <= 65500:
        raise UserError(f"image size: {image_size}; 16 to 65500 pixels wanted")
    if crop is not None and image_size is None:
        raise UserError(f"crop: {crop} without an image size; set the image size too")
    if crop is not None and crop < 16:
        raise UserError(f"crop: {crop}; at least 16 pixels wanted")
    if not 1 <= quality <= 100:
        raise UserError(f"quality: {quality}; 1 to 100 wanted")
    return Options(split, samples_per_shard, image_size, crop, quality if image_size else None)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second writer out of the folder; nothing is left behind, whatever happens to this process."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # The workers of a killed run hold its lock for the moment they need to notice.
                if time.monotonic() > deadline:
                    raise UserError(f"{out}: another process is writing shards here; wait for it to end") from None
                time.sleep(0.1)
            except OSError:
                break  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _settle_plan(out: Path, source: Source, options: Options, splits: list[str]) -> None:
    """Compare with the plan of an earlier run, or write one."""
    path = out / PLAN
    plan = {
        "schema": SCHEMA,
        "fingerprint": source.fingerprint,
        "images": len(source.records),
        "options": asdict(options),
    }
    if not path.exists():
        for name in splits:
            if next((out / name).glob("*.tar"), None):
                raise UserError(f"{out / name}: holds tars that `shard` did not plan; choose another folder")
        write_json(path, plan)
        return
    try:
        before = json.loads(path.read_bytes())
        options_before = dict(before["options"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged; choose another folder, or delete {out}") from None
    if before == plan:
        return
    differences = [
        f"{name}: {options_before.get(name)} there, {value} now"
        for name, value in asdict(options).items()
        if options_before.get(name) != value
    ]
    if before.get("fingerprint") != plan["fingerprint"]:
        differences.append(f"source: {before.get('images')} images there, {plan['images']} now, or other files")
    if before.get("schema") != SCHEMA:
        differences.append(f"schema: {before.get('schema')} there, {SCHEMA} now")
    raise UserError(
        f"{out}: shards of other options or another source ({'; '.join(differences)}); "
        "choose another folder, or delete it"
    )


def _tasks(folder: Path, records: list[Record], samples_per_shard: int) -> list[Task]:
    starts = range(0, len(records), samples_per_shard)
    return [
        Task(folder / shard_name(number), tuple(records[start : start + samples_per_shard]))
        for number, start in enumerate(starts)
    ]


def _remove_leftovers(folders: list[Path]) -> None:
    for folder in folders:
        for pattern in (".shard-*.tmp.*", f".{Path(MANIFEST).stem}-*.tmp.*", f".{Path(PLAN).stem}-*.tmp.*"):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)


def _is_finished(path: Path) -> bool:
    """The index is written after the tar: where it is and the tar's size fits, the shard is whole."""
    try:
        return bool(path.stat().st_size == read_index(path)["bytes"])
    except (OSError, KeyError, ShardError):
        return False


def _written_images(
    source: Source, options: Options, tasks: list[Task], workers: int | None
) -> Generator[None, None, None]:
    """Yield once for each image, a shard's worth at a time."""
    for images in run_tasks(write_shard, (source, options), tasks, workers):
        for _ in range(images):
            yield


def _finish(
    out: Path,
    source: Source,
    options: Options,
    tasks: dict[str, list[Task]],
    written: set[Path],
    max_rejected: int,
) -> Summary:
    """Gather the indexes; with few enough rejected, write the manifests."""
    manifests = {}
    for name, shards in tasks.items():
        indexes = [read_index(task.path) for task in shards]
        manifests[name] = Manifest(
            "written",
            name,
            source.fingerprint,
            asdict(options),
            tuple(shard_entry(task.path, index) for task, index in zip(shards, indexes, strict=True)),
            tuple(Rejected(**each) for index in indexes for each in index["rejected"]),
        )
    reject_at_most(tuple(each for manifest in manifests.values() for each in manifest.rejected), max_rejected)
    summaries = {}
    for name, manifest in manifests.items():
        if not manifest.samples:
            raise UserError(f"{out / name}: every image of this split was rejected")
        write_manifest(out / name, manifest)
        summaries[name] = SplitSummary(
            out / name,
            manifest.samples,
            len(manifest.shards),
            sum(task.path in written for task in tasks[name]),
            sum(shard.bytes for shard in manifest.shards),
            manifest.content_hash,
            manifest.rejected,
        )
    return Summary(summaries)
