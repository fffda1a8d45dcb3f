"""Write shards: which image goes where is settled first, then every shard is written on its own.

A shard's bytes depend on its records and the options alone, so they are the same for any number of workers and
after any interruption, and for any number of parts. Order on disk: plan.json, then tar and index of each shard, then
manifest.json of each split.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.errors import UserError
from pipeline.common.files import os_errors_named
from pipeline.common.processes import run_all
from pipeline.data.shards.array_jobs import (
    Part,
    forget_parts,
    in_a_row,
    locked,
    missing,
    note_parts,
    planned_split,
    remove_leftovers,
    settle_plan,
)
from pipeline.data.shards.format import PLAN, Manifest, Rejected, ShardError, read_index
from pipeline.data.shards.packing import Options, Task, cut, gather, reject_at_most, write_manifest, write_shard
from pipeline.data.source.photographs import Source, open_source
from pipeline.data.source.splits import AUTO, split_records, usual_split


class Written(NamedTuple):
    """One split as it is on disk, or a part's share of it; `new` of its shards are, the others were there."""

    folder: Path
    manifest: Manifest
    new: int


@dataclass(frozen=True)
class Summary:
    """What `write_shards` made, or found made; `part` is None for all shards.

    `ignored` files are no images: ending -> their number.
    """

    splits: dict[str, Written]
    part: Part | None
    ignored: dict[str, int]

    @property
    def samples(self) -> int:
        return sum(split.manifest.samples for split in self.splits.values())

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        return tuple(rejected for split in self.splits.values() for rejected in split.manifest.rejected)

    @property
    def written(self) -> int:
        """Shards written by this call; 0 when all were there."""
        return sum(split.new for split in self.splits.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON. A part has no content hash, which is that of all shards."""
        hidden = {"content_hash": None} if self.part else {}
        splits = {
            name: {"folder": str(folder), "written": new} | manifest.summary() | hidden
            for name, (folder, manifest, new) in self.splits.items()
        }
        part = str(self.part) if self.part else None
        counts = {"samples": self.samples, "written": self.written, "ignored": self.ignored}
        return {"part": part, **counts, "splits": splits}


def write_shards(
    source: Path,
    out: Path,
    *,
    split: str = AUTO,
    samples_per_shard: int = 1000,
    image_size: int | None = None,
    crop: int | None = None,
    quality: int | None = None,
    workers: int | None = None,
    max_rejected: int = 0,
    part: Part | None = None,
    finish: bool = False,
) -> Summary:
    """Write the images of `source` as shards into `out/train`, `out/test` and, for `official`, `out/validation`.

    Shards that are finished are left as they are, so running it again continues or does nothing.

    Args:
        source: anything `open_source` takes.
        split: of `split_records`, or `auto`: what `out` was begun with, else `usual_split`.
        image_size: None passes image bytes through untouched; else the side in pixels of a re-encoded square.
        crop: side in pixels of the centre square that is cut before resizing; None takes the shorter side.
        quality: of re-encoded JPEGs, 1 to 100; None: 90.
        workers: processes; None takes every processor.
        max_rejected: how many unusable images are tolerated, each a gap in its shard; more are read again next time.
        part: write this share of the shards only, and no manifest. Parts may run at the same time.
        finish: write no shard, only the manifests: the last step after all parts.

    Raises:
        UserError: the source, the options or the disk, more than `max_rejected`, or shards missing for `finish`.
    """
    assert not (part and finish), "a part is not the last step"
    _check_re_encoding(image_size, crop=crop, quality=quality)
    opened = open_source(source)
    split = _settled_split(split, out, len(opened.records))
    options = Options(split, samples_per_shard, image_size, crop, (quality or 90) if image_size else None)
    splits = split_records(opened.records, split)
    tasks = {name: cut(out / name, records, samples_per_shard) for name, records in splits.items()}
    own = part.share(tasks) if part else tasks
    with os_errors_named(out):
        if finish and not (out / PLAN).exists():
            raise UserError(f"{out}: no {PLAN}, so nothing to finish; run every --part i/n first")
        out.mkdir(parents=True, exist_ok=True)
        with locked(out, shared=part is not None):
            settle_plan(out, opened, options, list(splits))
            unfinished = _unfinished(in_a_row(own), None if finish else max_rejected)
            if finish and unfinished:
                raise missing(out, tasks, unfinished)
            remove_leftovers(out, own, only_shards=part is not None)
            if part and unfinished:
                note_parts(out, part)
            run_all(write_shard, (opened, options), unfinished, workers, "shard", "shards")
            new = {task.path for task in unfinished}
            summary = Summary(_splits(out, own, new, opened, options), part, opened.ignored)
            reject_at_most(summary.rejected, max_rejected)
            if not part:
                _write_manifests(out, summary)
            return summary


def _settled_split(split: str, out: Path, images: int) -> str:
    """What `split` stands for: `auto` goes on as `out` was begun."""
    return (planned_split(out) or usual_split(images)) if split == AUTO else split


def _check_re_encoding(image_size: int | None, **options: int | None) -> None:
    for name, value in options.items():
        if value is not None and image_size is None:
            raise UserError(f"{name}: {value} without an image size, so nothing is re-encoded; set the image size too")


def _unfinished(tasks: list[Task], max_rejected: int | None) -> list[Task]:
    """Shards to write: those that are not whole and, if more than `max_rejected` images are left out, those with gaps.

    The source may have been mended since.
    """
    left_out = [_rejections(task.path) for task in tasks]
    again = max_rejected is not None and sum(filter(None, left_out)) > max_rejected
    return [task for task, count in zip(tasks, left_out, strict=True) if count is None or (again and count)]


def _rejections(path: Path) -> int | None:
    """How many images a finished shard leaves out; None: it is not finished.

    The index is written after the tar: where it is and the tar's size fits, the shard is whole.
    """
    try:
        index = read_index(path)
        return len(index.rejected) if path.stat().st_size == index.bytes else None
    except (OSError, ShardError):
        return None


def _splits(
    out: Path, tasks: dict[str, list[Task]], new: set[Path], source: Source, options: Options
) -> dict[str, Written]:
    splits = {}
    for name, shards in tasks.items():
        paths = [task.path for task in shards]
        manifest = gather(paths, kind="written", split=name, fingerprint=source.fingerprint, options=asdict(options))
        splits[name] = Written(out / name, manifest, len(new.intersection(paths)))
    return splits


def _write_manifests(out: Path, summary: Summary) -> None:
    for folder, manifest, _ in summary.splits.values():
        if not manifest.samples:
            raise UserError(
                f"{folder}: every image of this split was rejected; mend them, or write to another folder with a "
                "larger fraction, as --split 0.3 (data.split)"
            )
        write_manifest(folder, manifest)
    forget_parts(out)
