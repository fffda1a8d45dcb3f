"""Copy shards to a node's own disk, by hash: every file is checked against its manifest's SHA-256 as it is copied.

SOURCE is a folder or a URL.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import os_errors_named, replacing, sha256
from pipeline.common.processes import run_all
from pipeline.data.remote import NotThere, blocks
from pipeline.data.shards.format import (
    MANIFEST,
    MAX_JSON_BYTES,
    MAX_MANIFEST_BYTES,
    SPLITS,
    Manifest,
    ShardEntry,
    index_path,
    load_manifest,
    parse_manifest,
)


@dataclass(frozen=True)
class StagedSplit:
    """One split as it is on the node's disk; `copied` of its shards are new, the others were there."""

    folder: Path
    samples: int
    shards: int
    copied: int
    bytes: int
    content_hash: str


@dataclass(frozen=True)
class StageSummary:
    """What `stage` copied, or found copied."""

    splits: tuple[StagedSplit, ...]

    @property
    def copied(self) -> int:
        """Shards copied by this call; 0 when all were there."""
        return sum(split.copied for split in self.splits)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        splits = [asdict(split) | {"folder": str(split.folder)} for split in self.splits]
        return {"copied": self.copied, "splits": splits}


@dataclass(frozen=True)
class _Split:
    source: str
    folder: Path
    content: bytes
    """Of the manifest, kept as it is."""
    manifest: Manifest


def stage(source: str, destination: Path, *, workers: int | None = None) -> StageSummary:
    """Copy a shards folder, or every split of one, to `destination`; files that are there and whole are kept.

    May be called by every process of a node at once: one copies, the others wait for it.

    Args:
        source: a path, or a URL of http://, https:// or s3://, or `pipe:` and a command with {} for the file's name.
        workers: files copied at a time; None: as many as processors.

    Raises:
        UserError: there are no shards in `source`, a file differs from its manifest, `destination` holds other shards
            or has no room for these.
    """
    with os_errors_named(destination):
        splits = _splits(source, destination)
        destination.mkdir(parents=True, exist_ok=True)
        before = [_verified_at(split) for split in splits]
        with _locked(destination):
            # A manifest is written anew each time: another process has finished it while this one waited.
            due = [split for split, then in zip(splits, before, strict=True) if _verified_at(split) in (None, then)]
            for split in splits:
                for left in split.folder.glob(".*-????????.tmp.*"):  # as `replacing` names them
                    left.unlink(missing_ok=True)
                _refuse_other_shards(split)
            tasks = [(split, shard) for split in due for shard in split.manifest.shards]
            _check_space(destination, tasks)
            copied = Counter(run_all(_stage_shard, None, tasks, workers, "stage", "shards"))
            for split in due:
                with replacing(split.folder / MANIFEST) as temporary:
                    temporary.write_bytes(split.content)
    return StageSummary(tuple(_summary(split, copied[split.folder]) for split in splits))


def _at_most(url: str, limit: int) -> Generator[bytes, None, None]:
    """The blocks of `url`; UserError instead of the one that is behind `limit` bytes."""
    left = limit
    with closing(blocks(url)) as source:
        for block in source:
            left -= len(block)
            if left < 0:
                raise UserError(f"{url}: more than the {limit:,} bytes that it may have; run `verify` on the source")
            yield block


def _inside(source: str, folder: str) -> str:
    return source.replace("{}", folder + "{}") if source.startswith("pipe:") else f"{source.rstrip('/')}/{folder}"


def _file(source: str, name: str) -> str:
    """Path or URL of a file of `source`."""
    return source.replace("{}", shlex.quote(name)) if source.startswith("pipe:") else f"{source.rstrip('/')}/{name}"


def _splits(source: str, destination: Path) -> list[_Split]:
    """`source` itself if it has a manifest, else each of its splits that has one."""
    if source.startswith("pipe:") and "{}" not in source:
        raise UserError(f"{source}: write {{}} where the file's name belongs, as in pipe:ssh host cat /shards/{{}}")
    found: list[_Split] = []
    missing: list[NotThere] = []
    for place in ("", *(f"{split}/" for split in SPLITS)):
        inside = _inside(source, place)
        url = _file(inside, MANIFEST)
        try:
            content = b"".join(_at_most(url, MAX_MANIFEST_BYTES))
        except NotThere as reason:
            missing.append(reason)
            continue
        found.append(_Split(inside, destination / place, content, parse_manifest(content, url)))
        if not place:
            break
    if not found:
        raise UserError(f"{source}: no {MANIFEST} in it, in train/, validation/ or test/ ({missing[0]})")
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process of this node is in this block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _verified_at(split: _Split) -> int | None:
    """When the manifest was written, which is after its files were found whole."""
    with suppress(FileNotFoundError):
        return (split.folder / MANIFEST).stat().st_mtime_ns
    return None


def _refuse_other_shards(split: _Split) -> None:
    there = None
    with suppress(UserError):  # none, or damaged: it is written again
        there = load_manifest(split.folder).content_hash
    more = {path.name for path in split.folder.glob("[!.]*.tar")} - {shard.file for shard in split.manifest.shards}
    what = f"{min(more)}, which {split.source} has not" if more else ""
    if there not in (None, split.manifest.content_hash):
        what = f"other shards than {split.source}"
    if what:
        raise UserError(f"{split.folder}: holds {what}; choose another folder, or delete it")


def _check_space(destination: Path, tasks: list[tuple[_Split, ShardEntry]]) -> None:
    wanted = [(split.folder / shard.file, shard.bytes) for split, shard in tasks]
    needed = sum(size for path, size in wanted if not (path.is_file() and path.stat().st_size == size))
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise UserError(
            f"{destination}: {needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free; "
            "make room, or name a folder on a larger disk"
        )


def _stage_shard(shared: None, task: tuple[_Split, ShardEntry]) -> Path | None:
    """Copy what is missing of a shard; the split's folder if anything was."""
    split, shard = task
    tar = split.folder / shard.file
    copied = None
    for path, digest, size in ((index_path(tar), shard.index_sha256, MAX_JSON_BYTES), (tar, shard.sha256, shard.bytes)):
        if not (path.is_file() and sha256(path) == digest):
            _copy(_file(split.source, path.name), path, digest, size)
            copied = split.folder
    return copied


def _copy(url: str, path: Path, expected: str, size: int) -> None:
    digest = hashlib.sha256()
    with os_errors_named(path), replacing(path) as temporary:
        with temporary.open("wb") as out, closing(_at_most(url, size)) as content:
            for block in content:
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != expected:
            raise UserError(
                f"{url}: its SHA-256 is not the manifest's: damaged there, or on the way; "
                "try again, then run `verify` on the source"
            )


def _summary(split: _Split, copied: int) -> StagedSplit:
    manifest = split.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    return StagedSplit(split.folder, manifest.samples, len(manifest.shards), copied, size, manifest.content_hash)
