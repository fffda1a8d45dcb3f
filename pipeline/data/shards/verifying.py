"""Check every byte of a shards folder against its manifest and indexes.

Readers do not notice everything: plain WebDataset loses samples in silence when a tar is cut between members or a
header is damaged, and JPEG decoders miss most flipped bits. Hence counts, headers, CRC32 and SHA-256.
"""

import hashlib
import zlib
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.errors import UserError
from pipeline.common.processes import run_tasks
from pipeline.common.progress import progress
from pipeline.data.image_check import check, silent
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


class _Member(NamedTuple):
    """A file of a sample in a tar, as the index has it."""

    name: str
    offset: int
    length: int
    crc32: int

    @property
    def end(self) -> int:
        return self.offset + self.length + padding(self.length)


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
    with silent():
        problems += _check_members(shard, content, index, own=manifest.kind == "written")
    if not whole and not problems:
        problems.append(Problem(shard.file, None, "differs from the manifest's SHA-256, though every sample is intact"))
    return problems


def _check_members(shard: ShardEntry, content: bytes, index: Index, own: bool) -> list[Problem]:
    """Check header, bytes and padding of every member; `own` tars are known to the last byte."""
    problems: list[Problem] = []
    position = 0
    for number, sample in enumerate(index.located()):
        members = [_Member(f"{sample.key}.{sample.extension}", sample.offset, sample.length, sample.crc32)]
        if sample.meta_offset >= 0:
            members.append(_Member(f"{sample.key}.json", sample.meta_offset, sample.meta_length, sample.meta_crc32))
        if any(member.end > len(content) for member in members):
            lost = f"{index.samples - number} of {index.samples} samples"
            return [*problems, Problem(shard.file, sample.key, f"the tar is cut here, and {lost} are gone")]
        wrong = [text for member in members if (text := _member_problem(content, member, own))]
        if own and sample.offset != position + BLOCK:
            wrong = [f"{members[0].name} is not where the tar has it"]
        if not wrong:
            try:
                check(content[sample.offset : sample.offset + sample.length], "its image")
            except UserError as error:
                wrong.append(str(error))
        problems += [Problem(shard.file, sample.key, text) for text in wrong]
        position = members[-1].end
    if own and content[position:] != bytes(ending(position)):
        text = "the end of the tar is cut" if len(content) < shard.bytes else "the end of the tar is not zero"
        problems.append(Problem(shard.file, None, text))
    return problems


def _member_problem(content: bytes, member: _Member, own: bool) -> str | None:
    start, end = member.offset, member.offset + member.length
    if not is_header(content[start - BLOCK : start], member.name, member.length, own):
        return f"the tar header of {member.name} is damaged"
    if zlib.crc32(content[start:end]) != member.crc32:
        return f"{member.name} is damaged (CRC32 differs from the index)"
    if any(content[end : member.end]):
        return f"the padding behind {member.name} is not zero"
    return None
