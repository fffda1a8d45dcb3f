"""Shards on disk: WebDataset tars, an index of each, and a manifest, checked whenever they are read.

FOLDER/shard-000000.tar          <key>.jpg, .png or .webp, then <key>.json, for each sample
FOLDER/shard-000000.index.json   where each sample's bytes are, with their CRC32
FOLDER/manifest.json             written last: a folder without it is not finished
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeVar

from pydantic import BeforeValidator, ConfigDict, FailFast, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from pipeline.common import json_text
from pipeline.common.errors import UserError
from pipeline.common.files import read_bytes, sha256
from pipeline.data.shards.tar import BLOCK

SCHEMA: Final = 1
MANIFEST, PLAN = "manifest.json", "plan.json"
SPLITS = ("train", "validation", "test")
MAX_JSON_BYTES = 2**25
"""A larger index is not read: that of 300,000 samples is smaller."""
MAX_MANIFEST_BYTES = 2**24
"""A larger manifest is not read: that of 40,000 shards is smaller. In memory it may take a hundred times as much."""

Parsed = TypeVar("Parsed")

CHECKED = ConfigDict(strict=True)
Size = Annotated[int, Field(ge=0, le=2**50)]
Length = Annotated[int, Field(ge=0, le=2**30)]
Crc32 = Annotated[int, Field(ge=0, lt=2**32)]
Side = Annotated[int, Field(ge=1, le=2**20)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TarName = Annotated[str, Field(pattern=r"^[^./\x00-\x1f][^/\x00-\x1f]*\.tar$", max_length=255)]
"""A plain name: no path leads out of the folder."""
Key = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$", max_length=512)]
Extension = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,5}$")]


def _as_utf8(text: Any) -> Any:  # file names may not be
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_as_utf8)]


class ShardError(UserError):
    """Damaged shards; the message names the shard and, where one is concerned, the key."""


@dataclass(frozen=True)
class Rejected:
    """An input image that is not in the shards, and why."""

    file: Text
    reason: Text


@dataclass(frozen=True, config=CHECKED)
class ShardEntry:
    """One shard, as the manifest lists it; `bytes` is the size of the tar."""

    file: TarName
    samples: Size
    bytes: Size
    sha256: Sha256
    index_sha256: Sha256


@dataclass(frozen=True, config=CHECKED)
class Manifest:
    """What a shards folder holds. `kind` is `written` (by `shard`) or `indexed` (tars that others wrote)."""

    kind: Literal["written", "indexed"]
    split: str | None
    fingerprint: str | None
    options: dict[str, str | int | float | bool | None]
    shards: Annotated[tuple[ShardEntry, ...], FailFast()]
    rejected: Annotated[tuple[Rejected, ...], FailFast()]

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all tars."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def content_hash(self) -> str:
        """SHA-256 over the shards' names and SHA-256: the identity of the data that a training run saw."""
        lines = "".join(f"{shard.file} {shard.sha256}\n" for shard in self.shards)
        return hashlib.sha256(lines.encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What commands tell of it as JSON."""
        return {
            "kind": self.kind,
            "samples": self.samples,
            "shards": len(self.shards),
            "bytes": self.bytes,
            "content_hash": self.content_hash,
            "rejected": [asdict(each) for each in self.rejected],
        }

    def as_dict(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return asdict(self) | {"schema": SCHEMA, "samples": self.samples, "content_hash": self.content_hash}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ValueError("a shard is listed twice")
        return self


@dataclass(frozen=True)
class _Derived:
    """What a manifest says beside its own fields."""

    schema: int | float | str | bool | None = None
    samples: int | str | None = None
    content_hash: str | None = None


class Member(NamedTuple):
    """A file in a tar. The offset is that of its bytes, behind the tar header."""

    name: str
    offset: int
    length: int
    crc32: int


class Sample(NamedTuple):
    """Where one sample is; without a `.json`, `meta_offset` is -1. An index has a column of each number."""

    key: str
    shard: str
    extension: str
    offset: int
    length: int
    crc32: int
    meta_offset: int
    meta_length: int
    meta_crc32: int
    width: int
    height: int

    @property
    def image_name(self) -> str:
        """Of the image in the tar."""
        return f"{self.key}.{self.extension}"

    def members(self) -> list[Member]:
        """The image and, if there is one, the `.json`."""
        image = Member(self.image_name, self.offset, self.length, self.crc32)
        metadata = Member(f"{self.key}.json", self.meta_offset, self.meta_length, self.meta_crc32)
        return [image, metadata] if self.meta_offset >= 0 else [image]


COLUMNS = Sample._fields[3:]
"""Those of an index that are numbers."""


@dataclass(frozen=True, config=CHECKED)
class Index:
    """Where the samples of one shard are: item i of each list is of sample i. `bytes` is the size of the tar."""

    schema: Literal[1]
    shard: TarName
    samples: Size
    bytes: Size
    sha256: Sha256
    rejected: Annotated[tuple[Rejected, ...], FailFast()]
    keys: Annotated[list[Key], FailFast()]
    extensions: Annotated[list[Extension], FailFast()]
    offset: Annotated[list[Size], FailFast()]
    length: Annotated[list[Length], FailFast()]
    crc32: Annotated[list[Crc32], FailFast()]
    meta_offset: Annotated[list[Annotated[int, Field(ge=-1, le=2**50)]], FailFast()]
    meta_length: Annotated[list[Length], FailFast()]
    meta_crc32: Annotated[list[Crc32], FailFast()]
    width: Annotated[list[Side], FailFast()]
    height: Annotated[list[Side], FailFast()]

    def located(self) -> Iterator[Sample]:
        """Every sample, in order."""
        columns = [getattr(self, column) for column in COLUMNS]
        for key, extension, *numbers in zip(self.keys, self.extensions, *columns, strict=True):
            yield Sample(key, self.shard, extension, *numbers)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if {len(getattr(self, name)) for name in ("keys", "extensions", *COLUMNS)} != {self.samples}:
            raise ValueError("its columns have not as many rows as it has samples")
        if len(set(self.keys)) < self.samples:
            raise ValueError(f"key {Counter(self.keys).most_common(1)[0][0]} is in it twice")
        for member in (member for sample in self.located() for member in sample.members()):
            if not BLOCK <= member.offset <= self.bytes - member.length:
                raise ValueError("an offset lies outside of the tar")
        return self


def make_index(name: str, tar: Path, samples: list[Sample], rejected: Iterable[Rejected]) -> Index:
    """The index of the shard `name`, whose bytes are in the file `tar`."""
    columns = {column: [getattr(sample, column) for sample in samples] for column in COLUMNS}
    keys, extensions = [sample.key for sample in samples], [sample.extension for sample in samples]
    size = tar.stat().st_size
    return Index(SCHEMA, name, len(samples), size, sha256(tar), tuple(rejected), keys, extensions, **columns)


def parse_json(kind: type[Parsed], content: bytes) -> Parsed:
    """Read and validate `content`. Raises ValueError, whose one line names the field that is wrong."""
    parsed = _validated(kind, content)
    json_text.parse(content)  # pydantic takes the last of two fields of one name
    return parsed


def _validated(kind: type[Parsed], content: bytes) -> Parsed:
    if content.count(b"[") + content.count(b"{") > 1000 + len(content) // 16:  # each takes a hundred bytes of memory
        raise ValueError("more lists and objects than such a file has")
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None


def first_error(error: ValidationError) -> str:
    """What is wrong first, in one line: the field and what was found there."""
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":  # what was found is the whole file
        return f"{field}: {message}"
    first = error.errors(include_url=False)[0]
    return f"{field}: {message}, found {first['input']!r:.60}" if field else message


def load_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises:
        UserError: there is none, it is damaged, or it is of another schema.
    """
    path = folder / MANIFEST
    try:
        return parse_manifest(read_bytes(path, MAX_MANIFEST_BYTES), str(path))
    except FileNotFoundError:
        raise UserError(_why_no_manifest(folder)) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def parse_manifest(content: bytes, where: str) -> Manifest:
    """As `load_manifest`, from the content; `where` it comes from, for messages."""
    try:
        derived = _validated(_Derived, content)
        if derived.schema != SCHEMA:
            raise ValueError(f"schema {derived.schema!r:.60}, this version reads {SCHEMA}")
        manifest = parse_json(Manifest, content)
        if (manifest.samples, manifest.content_hash) != (derived.samples, derived.content_hash):
            raise ValueError("its counts or its content hash do not fit its shards")
    except ValueError as error:
        raise UserError(f"{where}: damaged, or not a manifest of shards ({error}); write the shards again") from None
    return manifest


def split_folders(folder: Path) -> list[Path]:
    """The splits in a folder of several; the folder itself where it is one split, or holds none."""
    inside = [folder / split for split in SPLITS if (folder / split).is_dir()]
    return inside if inside and not (folder / MANIFEST).exists() else [folder]


def split_folder(folder: Path, split: str) -> Path:
    """`folder/split` in a folder of several; else the folder itself."""
    return folder / split if folder / split in split_folders(folder) else folder


def _why_no_manifest(folder: Path) -> str:
    if not folder.is_dir() and (folder.parent / MANIFEST).is_file():
        return f"{folder}: no such folder: {folder.parent} is one split; name the folder that holds train/ and test/"
    if not folder.is_dir():
        return f"{folder}: no such folder; write shards with `shard SOURCE OUT`"
    for split in ("train", "test"):
        if (folder / split / MANIFEST).is_file():
            return f"{folder}: no {MANIFEST} here, but in {folder / split}; name that folder"
    if (folder.name in SPLITS and (folder.parent / PLAN).exists()) or any(folder.glob("shard-*.index.json")):
        return f"{folder}: no {MANIFEST}: `shard` has not finished; run it again (after --part: --finish), it continues"
    if any(folder.glob("[!.]*.tar")):
        return f"{folder}: tars without {MANIFEST}; index them with `shard --index-only {folder}`"
    return f"{folder}: no {MANIFEST}, so no shards; write them with `shard SOURCE OUT`"


def index_path(shard: Path) -> Path:
    """Where the index of a shard is: `shard-000000.tar` -> `shard-000000.index.json`."""
    return shard.with_suffix(".index.json")


def read_index(shard: Path, entry: ShardEntry | None = None) -> Index:
    """Read the index of one shard and check it; `entry` is what the manifest says of the shard, if there is one.

    Raises:
        ShardError: missing, damaged, or of another shard.
    """
    path = index_path(shard)
    try:
        content = read_bytes(path, MAX_JSON_BYTES)
    except OSError as error:
        raise ShardError(f"{path}: the index cannot be read: {error.strerror}; run `shard` again") from None
    if entry is not None and hashlib.sha256(content).hexdigest() != entry.index_sha256:
        raise ShardError(f"{path}: the index differs from the manifest's SHA-256; delete it and run `shard` again")
    try:
        index = parse_json(Index, content)
        if index.shard != shard.name:
            raise ValueError(f"it is of {index.shard}")
        if entry and (index.samples, index.bytes, index.sha256) != (entry.samples, entry.bytes, entry.sha256):
            raise ValueError("samples, bytes or SHA-256 are not those of the manifest")
    except ValueError as error:
        raise ShardError(
            f"{path}: the index is damaged or of another version ({error}); delete it and run `shard` again"
        ) from None
    return index
