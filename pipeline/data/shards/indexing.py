"""Indexes and a manifest for WebDataset tars that others wrote. The tars stay as they are."""

import re
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.common.files import os_errors_named
from pipeline.common.processes import run_all
from pipeline.data.image_check import check, silent
from pipeline.data.shards.format import (
    MANIFEST,
    PLAN,
    Manifest,
    Rejected,
    Sample,
    first_error,
    load_manifest,
    make_index,
)
from pipeline.data.shards.packing import gather, reject_at_most, write_index, write_manifest
from pipeline.data.shards.tar import BoundedHeader, check_size
from pipeline.data.source.listing import MAX_FILE_BYTES

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# As WebDataset splits a member's name: the key ends at the first dot behind the last slash.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")


def index_tars(folder: Path, *, workers: int | None = None, max_rejected: int = 0) -> Manifest:
    """Build the index of every `*.tar` in `folder`, and a manifest, so that the folder reads as our own shards do.

    Every image is decoded once. A sample needs one member `.jpg`, `.jpeg`, `.png` or `.webp`; its `.json`, if any, is
    metadata.

    Args:
        workers: processes; None takes every processor.
        max_rejected: how many samples without a usable image are tolerated and left out of the index.

    Raises:
        UserError: no tars, a damaged tar, shards that `write_shards` wrote, or more rejected than `max_rejected`.
    """
    tars = sorted(folder.glob("[!.]*.tar"))
    for tar in tars:
        if not (tar.name.isprintable() and tar.is_file()):
            raise UserError(f"{folder}: {tar.name!r} is no file, or of a name that is not UTF-8; rename or move it")
    if not tars:
        raise UserError(f"{folder}: no .tar files to index (compressed tars cannot be read at random: unpack them)")
    if (folder / MANIFEST).exists() and load_manifest(folder).kind == "written":
        raise UserError(f"{folder}: `shard` wrote these, with their index; check them with `verify`")
    if (folder.parent / PLAN).exists():
        raise UserError(f"{folder}: `shard` has not finished these; run it again, it continues")
    with os_errors_named(folder):
        run_all(_index_tar, None, tars, workers, "index", "tars")
        manifest = gather(tars, kind="indexed", split=None, fingerprint=None, options={})
        reject_at_most(manifest.rejected, max_rejected)
        if not manifest.samples:
            raise UserError(f"{folder}: no sample with an image in {len(tars)} tars")
        write_manifest(folder, manifest)
    return manifest


def _index_tar(_: None, path: Path) -> None:
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    with os_errors_named(path), path.open("rb") as stream, silent():
        for key, members in _samples(path):
            name = f"{path.name}/{key}"
            try:
                samples.append(_sample(stream, key, name, members))
            except UserError as error:
                rejected.append(Rejected(name, str(error).removeprefix(f"{name}: ")))
        try:
            write_index(path, make_index(path.name, path, samples, rejected))
        except ValidationError as error:
            raise UserError(f"{path}: cannot be indexed: {first_error(error)}") from None


def _samples(path: Path) -> list[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key and members by extension, of neighbours that share a key."""
    samples: list[tuple[str, dict[str, tarfile.TarInfo]]] = []
    try:
        with tarfile.open(path, "r:", errorlevel=2, tarinfo=BoundedHeader) as archive:
            members = []
            for member in archive:
                if member.size < 0:  # an extended header may have changed it
                    check_size(member)
                if member.isreg():
                    members.append(member)
            # tarfile takes a cut or damaged header for the end; a whole tar ends in zeros there.
            end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
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
        is_zero = not any(map(any, iter(lambda: stream.read(2**20), b"")))
    if path.stat().st_size <= end or not is_zero:
        raise UserError(f"{path}: cut or damaged behind byte {end}; copy it again")


def _sample(stream: BinaryIO, key: str, name: str, members: dict[str, tarfile.TarInfo]) -> Sample:
    """Where a sample's members are. Raises UserError, `name` first, if it has no usable image."""
    images = [extension for extension in members if extension.lower() in IMAGE_EXTENSIONS]
    if len(images) != 1:
        found = ", ".join(members) if images else "none"
        raise UserError(f"{name}: one of .{', .'.join(IMAGE_EXTENSIONS)} wanted, found {found}")
    if key.encode("utf-8", "replace").decode() != key:
        raise UserError(f"{name}: its name is not UTF-8")
    member = members[images[0]]
    metadata = next((members[extension] for extension in members if extension.lower() == "json"), None)
    if max(member.size, metadata.size if metadata else 0) > MAX_FILE_BYTES:
        raise UserError(f"{name}: larger than {MAX_FILE_BYTES:,} bytes")
    image = check(_read(stream, member), name)
    described = (-1, 0, 0)
    if metadata:
        described = (metadata.offset_data, metadata.size, zlib.crc32(_read(stream, metadata)))
    return Sample(
        key, Path(stream.name).name, images[0], member.offset_data, member.size, zlib.crc32(image.data),
        *described, image.width, image.height,
    )  # fmt: skip


def _read(stream: BinaryIO, member: tarfile.TarInfo) -> bytes:
    stream.seek(member.offset_data)
    data = stream.read(member.size)
    if len(data) != member.size:
        raise OSError(0, f"cut inside {member.name}", stream.name)
    return data
