"""Indexes and a manifest for WebDataset tars that others wrote. The tars stay as they are."""

import re
import tarfile
import zlib
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import os_errors_named, sha256
from pipeline.common.processes import run_tasks, stoppable
from pipeline.common.progress import progress
from pipeline.data.image_check import ImageRejected, check
from pipeline.data.shards.format import COLUMNS, MANIFEST, PLAN, SCHEMA, Manifest, Rejected, load_manifest, read_index
from pipeline.data.shards.packing import reject_at_most, shard_entry, write_index, write_manifest

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png"})
# As WebDataset splits a member's name: the key ends at the first dot behind the last slash.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")


@dataclass(frozen=True)
class IndexSummary:
    """What `index_tars` found."""

    folder: Path
    samples: int
    shards: int
    content_hash: str
    rejected: tuple[Rejected, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"folder": str(self.folder)}


def index_tars(folder: Path, *, workers: int | None = None, max_rejected: int = 0) -> IndexSummary:
    """Build the index of every `*.tar` in `folder`, and a manifest, so that the folder reads as our own shards do.

    Every image is decoded once. A sample needs one member `.jpg`, `.jpeg` or `.png`; its `.json`, if any, is metadata.

    Args:
        workers: processes; None takes every processor.
        max_rejected: how many samples without a usable image are tolerated and left out of the index.

    Raises:
        UserError: no tars, a damaged tar, shards that `write_shards` wrote, or more rejected than `max_rejected`.
    """
    tars = sorted(folder.glob("[!.]*.tar"))
    if not tars:
        raise UserError(f"{folder}: no .tar files to index (compressed tars cannot be read at random: unpack them)")
    if (folder / MANIFEST).exists() and load_manifest(folder).kind == "written":
        raise UserError(
            f"{folder}: these shards were written by `shard` and have their index; check them with `verify`"
        )
    if (folder.parent / PLAN).exists():
        raise UserError(f"{folder}: `shard` has not finished these; run it again, it continues")
    with os_errors_named(folder):
        with closing(run_tasks(_index_tar, None, tars, workers)) as indexed:
            for _ in progress(indexed, "tars", len(tars)):
                pass
        indexes = [read_index(tar) for tar in tars]
        rejected = tuple(Rejected(**each) for index in indexes for each in index["rejected"])
        reject_at_most(rejected, max_rejected)
        entries = tuple(shard_entry(tar, index) for tar, index in zip(tars, indexes, strict=True))
        manifest = Manifest("indexed", None, None, {}, entries, rejected)
        if not manifest.samples:
            raise UserError(f"{folder}: no sample with an image in {len(tars)} tars")
        write_manifest(folder, manifest)
    return IndexSummary(folder, manifest.samples, len(tars), manifest.content_hash, rejected)


def _index_tar(_: None, path: Path) -> None:
    columns: dict[str, list[Any]] = {name: [] for name in ("keys", "extensions", *COLUMNS)}
    rejected: list[Rejected] = []
    with os_errors_named(path), path.open("rb") as stream:
        for key, members in stoppable(_samples(path)):
            try:
                row = _row(stream, key, members)
            except ImageRejected as reason:
                rejected.append(Rejected(f"{path.name}/{key}", str(reason)))
                continue
            for name, value in row.items():
                columns[name].append(value)
        index = {
            "schema": SCHEMA,
            "shard": path.name,
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
            "samples": len(columns["keys"]),
            "rejected": [asdict(each) for each in rejected],
        }
        write_index(path, index | columns)


def _samples(path: Path) -> list[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key and members by extension, of neighbours that share a key."""
    samples: list[tuple[str, dict[str, tarfile.TarInfo]]] = []
    try:
        with tarfile.open(path, "r:", errorlevel=2) as archive:
            members = [member for member in archive.getmembers() if member.isreg()]
            # tarfile takes a cut or damaged header for the end; a whole tar ends in zeros there.
            end = archive.offset
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a whole, uncompressed tar: {error}") from None
    _check_end(path, end)
    for member in members:
        match = _NAME.fullmatch(member.name)
        if match is None:
            continue
        key, extension = match[1], match[2]
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        if extension in samples[-1][1]:
            raise UserError(f"{path}: {member.name} is in it twice; WebDataset cannot read that either")
        samples[-1][1][extension] = member
    return samples


def _check_end(path: Path, end: int) -> None:
    with path.open("rb") as stream:
        stream.seek(end)
        rest = stream.read()
    if not rest or any(rest):
        raise UserError(f"{path}: cut or damaged behind byte {end}; copy it again")


def _row(stream: Any, key: str, members: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    images = [extension for extension in members if extension.lower() in IMAGE_EXTENSIONS]
    if len(images) != 1:
        raise ImageRejected(f"one .jpg, .jpeg or .png wanted, found {', '.join(members) if images else 'none'}")
    member = members[images[0]]
    metadata = next((members[extension] for extension in members if extension.lower() == "json"), None)
    image = check(_read(stream, member))
    return {
        "keys": key,
        "extensions": images[0],
        "offset": member.offset_data,
        "length": member.size,
        "crc32": zlib.crc32(image.data),
        "meta_offset": metadata.offset_data if metadata else -1,
        "meta_length": metadata.size if metadata else 0,
        "meta_crc32": zlib.crc32(_read(stream, metadata)) if metadata else 0,
        "width": image.width,
        "height": image.height,
    }


def _read(stream: Any, member: tarfile.TarInfo) -> bytes:
    stream.seek(member.offset_data)
    data = stream.read(member.size)
    if len(data) != member.size:
        raise UserError(f"{stream.name}: cut inside {member.name}; copy it again")
    assert isinstance(data, bytes)
    return data
