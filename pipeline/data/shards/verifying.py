"""Check every byte of a shards folder against its manifest and indexes.

Readers do not notice everything: plain WebDataset loses samples in silence when a tar is cut between members or a
header is damaged, and JPEG decoders miss most flipped bits. Hence counts, headers, CRC32 and SHA-256.
"""

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.processes import run_tasks, stoppable
from pipeline.common.progress import progress
from pipeline.data.image_check import check
from pipeline.data.shards.format import Index, Manifest, ShardEntry, ShardError, index_path, load_manifest, read_index
from pipeline.data.shards.tar import BLOCK, ending, is_header, padding


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, with the shard and, where one sample is concerned, its key."""

    shard: str
    key: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.shard}: {f'sample {self.key}: ' if self.key else ''}{self.message}"


@dataclass(frozen=True)
class Report:
    """The result of `verify`; `kind`, `samples` and `shards` are what the manifest says."""

    folder: Path
    kind: str
    shards: int
    samples: int
    content_hash: str
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"folder": str(self.folder), "ok": self.ok}


@dataclass(frozen=True)
class _Member:
    """A file in a tar, as the index has it."""

    key: str
    extension: str
    offset: int
    length: int
    crc32: int

    @property
    def what(self) -> str:
        return f"its .{self.extension}"


def verify(folder: Path, workers: int | None = None) -> Report:
    """Re-read every byte of the shards in `folder` and decode every image.

    Args:
        workers: processes; None takes every processor.

    Raises:
        UserError: there is no readable manifest to check against.
    """
    manifest = load_manifest(folder)
    listed = {shard.file for shard in manifest.shards}
    problems = [
        Problem(path.name, None, "not in the manifest; move it away, it would be read with the others by other tools")
        for path in sorted(folder.glob("[!.]*.tar"))
        if path.name not in listed
    ]
    with closing(run_tasks(_check_shard, (folder, manifest), manifest.shards, workers)) as checked:
        for found in progress(checked, "shards", len(manifest.shards)):
            problems += found
    problems.sort(key=lambda problem: problem.shard)
    return Report(folder, manifest.kind, len(manifest.shards), manifest.samples, manifest.content_hash, tuple(problems))


def _check_shard(shared: tuple[Path, Manifest], shard: ShardEntry) -> list[Problem]:
    folder, manifest = shared
    path = folder / shard.file
    if not path.is_file():
        return [Problem(shard.file, None, "missing, or not a file")]
    size = path.stat().st_size
    with path.open("rb") as stream:
        content = stream.read(min(size, shard.bytes))
    whole = size == len(content) and hashlib.sha256(content).hexdigest() == shard.sha256
    try:
        index = read_index(path, shard)
    except ShardError as error:
        return [
            Problem(index_path(path).name, None, str(error)),
            *([] if whole else [Problem(shard.file, None, "differs from the manifest's SHA-256")]),
        ]
    problems = []
    if size > shard.bytes:
        problems.append(Problem(shard.file, None, f"{size} bytes, the manifest lists {shard.bytes}"))
    problems += _check_members(shard, content, index, own=manifest.kind == "written")
    if not whole and not problems:
        problems.append(Problem(shard.file, None, "differs from the manifest's SHA-256, though every sample is intact"))
    return problems


def _check_members(shard: ShardEntry, content: bytes, index: Index, own: bool) -> list[Problem]:
    """Check header, bytes and padding of every member; `own` tars are known to the last byte."""
    problems: list[Problem] = []
    position = 0
    for number, (image, metadata) in enumerate(stoppable(_members(index))):
        members = [image] if metadata is None else [image, metadata]
        if any(member.offset + member.length + padding(member.length) > len(content) for member in members):
            lost = f"{index.samples - number} of {index.samples} samples"
            return [*problems, Problem(shard.file, image.key, f"the tar is cut here, and {lost} are gone")]
        wrong = [text for member in members if (text := _member_problem(content, member, position if own else None))]
        if not wrong:
            try:
                check(content[image.offset : image.offset + image.length], "its image")
            except UserError as error:
                wrong.append(str(error))
        problems += [Problem(shard.file, image.key, text) for text in wrong]
        position = members[-1].offset + members[-1].length + padding(members[-1].length)
    if own and content[position:] != bytes(ending(position)):
        text = "the end of the tar is cut" if len(content) < shard.bytes else "the end of the tar is not zero"
        problems.append(Problem(shard.file, None, text))
    return problems


def _members(index: Index) -> Iterator[tuple[_Member, _Member | None]]:
    """Image and `.json` (None where there is none) of every sample."""
    names = ("keys", "extensions", "offset", "length", "crc32", "meta_offset", "meta_length", "meta_crc32")
    for key, extension, offset, length, crc32, *meta in zip(*(getattr(index, name) for name in names), strict=True):
        yield (
            _Member(key, extension, offset, length, crc32),
            None if meta[0] < 0 else _Member(key, "json", *meta),
        )


def _member_problem(content: bytes, member: _Member, sample_start: int | None) -> str | None:
    """What is wrong with one member; `sample_start`: where its sample begins if the tar is our own."""
    end = member.offset + member.length
    block = content[member.offset - BLOCK : member.offset]
    own = sample_start is not None
    if sample_start is not None and member.extension != "json" and member.offset != sample_start + BLOCK:
        return f"{member.what} is not where the tar has it"
    if not is_header(block, f"{member.key}.{member.extension}", member.length, own):
        return f"the tar header of {member.what} is damaged"
    if zlib.crc32(content[member.offset : end]) != member.crc32:
        return f"{member.what} is damaged (CRC32 differs from the index)"
    if any(content[end : end + padding(member.length)]):
        return f"the padding behind {member.what} is not zero"
    return None
