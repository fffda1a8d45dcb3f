"""Check every byte of a shards folder against its manifest and indexes.

Readers do not notice everything: plain WebDataset loses samples in silence when a tar is cut between members or a
header is damaged, and JPEG decoders miss most flipped bits. Hence counts, headers, CRC32 and SHA-256.
"""

import hashlib
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.errors import UserError
from pipeline.common.processes import run_all
from pipeline.data.image_check import check, silent
from pipeline.data.shards.format import (
    Index,
    Manifest,
    Member,
    ShardEntry,
    ShardError,
    index_path,
    load_manifest,
    read_index,
)
from pipeline.data.shards.tar import BLOCK, ending, is_header, padding


class Problem(NamedTuple):
    """One thing that is wrong, with the shard and, where one sample is concerned, its key."""

    shard: str
    key: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.shard}: {f'sample {self.key}: ' if self.key else ''}{self.message}"


class Report(NamedTuple):
    """What the manifest says, and what is wrong."""

    manifest: Manifest
    problems: list[Problem]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        problems = [problem._asdict() for problem in self.problems]
        return self.manifest.summary() | {"ok": not problems, "problems": problems}


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
        for path in folder.glob("[!.]*.tar")
        if path.name not in listed
    ]
    for found in run_all(_check_shard, (folder, manifest), manifest.shards, workers, "verify", "shards"):
        problems += found
    return Report(manifest, sorted(problems, key=lambda problem: problem.shard))


def _check_shard(shared: tuple[Path, Manifest], shard: ShardEntry) -> list[Problem]:
    folder, manifest = shared
    path = folder / shard.file
    if not path.is_file():
        return [Problem(shard.file, None, "missing, or not a file")]
    size = path.stat().st_size
    with path.open("rb") as stream:
        content = stream.read(min(size, shard.bytes))
    whole = size == len(content) and hashlib.sha256(content).hexdigest() == shard.sha256
    problems: list[Problem] = []
    if size > shard.bytes:
        problems.append(Problem(shard.file, None, f"{size} bytes, the manifest lists {shard.bytes}"))
    try:
        index = read_index(path, shard)
    except ShardError as error:
        problems.append(Problem(index_path(path).name, None, str(error)))
        expected = "differs from the manifest's SHA-256"
    else:
        with silent():
            problems += _check_members(shard, content, index, own=manifest.kind == "written")
        expected = "" if problems else "differs from the manifest's SHA-256, though every sample is intact"
    if expected and not whole:
        problems.append(Problem(shard.file, None, expected))
    return problems


def _check_members(shard: ShardEntry, content: bytes, index: Index, own: bool) -> list[Problem]:
    """Check header, bytes and padding of every member; `own` tars are known to the last byte."""
    problems: list[Problem] = []
    position = 0
    for number, sample in enumerate(index.located()):
        members = sample.members()
        if any(_end(member) > len(content) for member in members):
            lost = f"{index.samples - number} of {index.samples} samples"
            return [*problems, Problem(shard.file, sample.key, f"the tar is cut here, and {lost} are gone")]
        wrong = [text for member in members if (text := _member_problem(content, member, own))]
        if own and sample.offset != position + BLOCK:
            wrong = [f"{sample.image_name} is not where the tar has it"]
        if not wrong:
            try:
                check(content[sample.offset : sample.offset + sample.length], "its image")
            except UserError as error:
                wrong = [str(error)]
        problems += [Problem(shard.file, sample.key, text) for text in wrong]
        position = _end(members[-1])
    if own and content[position:] != bytes(ending(position)):
        text = "the end of the tar is cut" if len(content) < shard.bytes else "the end of the tar is not zero"
        problems.append(Problem(shard.file, None, text))
    return problems


def _end(member: Member) -> int:
    return member.offset + member.length + padding(member.length)


def _member_problem(content: bytes, member: Member, own: bool) -> str | None:
    start, end = member.offset, member.offset + member.length
    if not is_header(content[start - BLOCK : start], member.name, member.length, own):
        return f"the tar header of {member.name} is damaged"
    if zlib.crc32(content[start:end]) != member.crc32:
        return f"{member.name} is damaged (CRC32 differs from the index)"
    if any(content[end : _end(member)]):
        return f"the padding behind {member.name} is not zero"
    return None
