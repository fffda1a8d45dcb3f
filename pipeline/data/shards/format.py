"""Shards on disk: WebDataset tars, an index of each, and a manifest; opened for random access.

FOLDER/shard-000000.tar          <key>.jpg or <key>.png, then <key>.json, for each sample
FOLDER/shard-000000.index.json   where each sample's bytes are, with their CRC32
FOLDER/manifest.json             written last: a folder without it is not finished
"""

import hashlib
import json
import os
import resource
import zlib
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.data.shards.tar import BLOCK, is_header

SCHEMA = 1
MANIFEST, PLAN = "manifest.json", "plan.json"
# One row per sample and column in the index; an image without a `.json` has metadata offset -1.
COLUMNS = {
    "offset": np.int64,
    "length": np.int64,
    "crc32": np.uint32,
    "meta_offset": np.int64,
    "meta_length": np.int64,
    "meta_crc32": np.uint32,
    "width": np.int32,
    "height": np.int32,
}
# Open tars per reader: 128 where a process may have the usual 1,024 files open.
OPEN_SHARDS = min(128, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)


class ShardError(UserError):
    """Damaged shards; the message names the shard and, where one is concerned, the key."""


@dataclass(frozen=True)
class Rejected:
    """An input image that is not in the shards, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class ShardEntry:
    """One shard, as the manifest lists it; `bytes` is the size of the tar."""

    file: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a shards folder holds. `kind` is `written` (by `shard`) or `indexed` (tars that others wrote)."""

    kind: str
    split: str | None
    fingerprint: str | None
    options: dict[str, Any]
    shards: tuple[ShardEntry, ...]
    rejected: tuple[Rejected, ...]

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def content_hash(self) -> str:
        """SHA-256 over the shards' names and SHA-256: the identity of the data that a training run saw."""
        lines = "".join(f"{shard.file} {shard.sha256}\n" for shard in self.shards)
        return hashlib.sha256(lines.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        derived = {"schema": SCHEMA, "samples": self.samples, "content_hash": self.content_hash}
        return derived | asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Manifest":
        """Inverse of `as_dict`. Raises KeyError, TypeError or ValueError when it is not one."""
        manifest = cls(
            value["kind"],
            value["split"],
            value["fingerprint"],
            dict(value["options"]),
            tuple(ShardEntry(**shard) for shard in value["shards"]),
            tuple(Rejected(**rejected) for rejected in value["rejected"]),
        )
        if (manifest.samples, manifest.content_hash) != (value["samples"], value["content_hash"]):
            raise ValueError("its counts or its content hash do not fit its shards")
        return manifest


def load_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises:
        UserError: there is none, it is damaged, or it is of another schema.
    """
    path = folder / MANIFEST
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(_why_no_manifest(folder)) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: damaged, not JSON; delete it and run `shard` again") from None
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {schema!r}, this version reads {SCHEMA}; write the shards again")
    try:
        return Manifest.from_dict(value)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `shard` again") from None


def _why_no_manifest(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; write shards with `shard SOURCE OUT`"
    for split in ("train", "test"):
        if (folder / split / MANIFEST).is_file():
            return f"{folder}: no {MANIFEST} here, but in {folder / split}; name that folder"
    if (folder.parent / PLAN).exists() or any(folder.glob("shard-*.index.json")):
        return f"{folder}: no {MANIFEST}: `shard` has not finished; run it again (after --part: --finish), it continues"
    if any(folder.glob("[!.]*.tar")):
        return f"{folder}: tars without {MANIFEST}; index them with `shard --index-only {folder}`"
    return f"{folder}: no {MANIFEST}, so no shards; write them with `shard SOURCE OUT`"


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.tar"


def index_path(shard: Path) -> Path:
    """Where the index of a shard is: `shard-000000.tar` -> `shard-000000.index.json`."""
    return shard.with_suffix(".index.json")


def read_index(shard: Path, sha256: str | None = None) -> dict[str, Any]:
    """Read the index of one shard.

    Args:
        sha256: what the manifest says of the index file; None is not checked.

    Raises:
        ShardError: missing, damaged, or of another shard.
    """
    path = index_path(shard)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: the index cannot be read: {error.strerror}; run `shard` again") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ShardError(f"{path}: the index differs from the manifest's SHA-256; delete it and run `shard` again")
    try:
        index = json.loads(content)
        rows = {len(index[column]) for column in ("keys", "extensions", *COLUMNS)}
        if index["schema"] != SCHEMA or index["shard"] != shard.name or rows != {index["samples"]}:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ShardError(
            f"{path}: the index is damaged or of another version; delete it and run `shard` again"
        ) from None
    assert isinstance(index, dict)
    return index


@dataclass(frozen=True)
class Sample:
    """Where one sample is. Offsets are those of the bytes themselves, behind the tar header."""

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


class ShardIndex:
    """Every sample of a shards folder, in the order of the shards: about 60 bytes and the key for each."""

    def __init__(
        self, manifest: Manifest, columns: dict[str, NDArray[Any]], keys: bytes, key_ends: NDArray[Any]
    ) -> None:
        self.manifest = manifest
        self.columns = columns
        self.starts = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
        self._keys = keys
        self._key_ends = key_ends
        self._starts: list[int] = self.starts.tolist()  # few enough to be plain Python: one bisect per read

    @classmethod
    def load(cls, folder: Path) -> "ShardIndex":
        """Read the manifest and every index.

        Raises:
            UserError: as `load_manifest`.
            ShardError: an index is missing, damaged, or of other shards than the manifest.
        """
        manifest = load_manifest(folder)
        parts: dict[str, list[NDArray[Any]]] = {column: [np.zeros(0, dtype)] for column, dtype in COLUMNS.items()}
        parts["extension"] = [np.zeros(0, "S5")]
        keys, ends = bytearray(), [np.zeros(1, np.int64)]
        for shard in manifest.shards:
            index = read_index(folder / shard.file, shard.index_sha256)
            for column, dtype in COLUMNS.items():
                parts[column].append(np.array(index[column], dtype))
            parts["extension"].append(np.array(index["extensions"], dtype="S5"))
            encoded = [key.encode("utf-8", "surrogateescape") for key in index["keys"]]
            ends.append(len(keys) + np.cumsum([len(key) for key in encoded], dtype=np.int64))
            keys += b"".join(encoded)
        columns = {column: np.concatenate(part) for column, part in parts.items()}
        return cls(manifest, columns, bytes(keys), np.concatenate(ends))

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, i: int) -> str:
        """Key of sample `i`."""
        return self._keys[self._key_ends[i] : self._key_ends[i + 1]].decode("utf-8", "surrogateescape")

    def shard_of(self, i: int) -> int:
        """Position in the manifest of the shard that holds sample `i`. Raises IndexError outside of 0 <= i < len."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return bisect_right(self._starts, i) - 1

    def locate(self, i: int) -> Sample:
        """Where sample `i` is. Raises IndexError outside of 0 <= i < len."""
        shard = self.manifest.shards[self.shard_of(i)].file
        numbers = {column: int(self.columns[column][i]) for column in COLUMNS}
        return Sample(self.key(i), shard, self.columns["extension"][i].decode(), **numbers)


class ShardReader:
    """Random access to samples. Every read is checked against its CRC32.

    Picklable, and safe to inherit by fork: tars are opened where they are read. One reader per thread.
    """

    def __init__(self, folder: Path) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self.folder = folder
        self.index = ShardIndex.load(folder)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, i: int) -> tuple[str, bytes]:
        """Key and image bytes of sample `i`; raises as `image`."""
        return self.index.key(i), bytes(self.image(i))

    def image(self, i: int) -> memoryview:
        """Image bytes of sample `i`, in memory of their own.

        Raises:
            ShardError: the shard is missing, short, or its bytes differ from the CRC32.
        """
        columns = self.index.columns
        length = int(columns["length"][i])
        data = self._bytes(i, int(columns["offset"][i]) - BLOCK, BLOCK + length)
        name = f"{self.index.key(i)}.{columns['extension'][i].decode()}"
        # The image is found without its header; but other readers lose what stands behind a damaged one.
        if not is_header(bytes(data[:BLOCK]), name, length, self.index.manifest.kind == "written"):
            raise ShardError(f"{self.name(i)}: its tar header is damaged; run `verify` on the folder")
        return self._checked(i, data[BLOCK:], columns["crc32"][i])

    def metadata(self, i: int) -> dict[str, Any]:
        """The `.json` of sample `i`; {} where it has none. Raises as `read`."""
        columns = self.index.columns
        offset = columns["meta_offset"][i]
        if offset < 0:
            return {}
        content = self._bytes(i, int(offset), int(columns["meta_length"][i]))
        self._checked(i, content, columns["meta_crc32"][i])
        try:
            value = json.loads(bytes(content))
        except ValueError:
            raise ShardError(f"{self.name(i)}: its .json is not JSON") from None
        return value if isinstance(value, dict) else {}

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _bytes(self, i: int, offset: int, length: int) -> memoryview:
        data = memoryview(bytearray(length))
        try:
            read = os.preadv(self._descriptor(i), [data], offset)
        except OSError as error:
            raise ShardError(f"{self.name(i)}: the shard cannot be read: {error.strerror}") from None
        if read != length:
            raise ShardError(f"{self.name(i)}: the tar ends before it; run `verify` on the folder")
        return data

    def _checked(self, i: int, data: memoryview, crc32: int) -> memoryview:
        if zlib.crc32(data) != crc32:
            raise ShardError(f"{self.name(i)}: damaged, its CRC32 differs from the index; run `verify` on the folder")
        return data

    def name(self, i: int) -> str:
        """Shard and key of sample `i`, for messages."""
        sample = self.index.locate(i)
        return f"{self.folder / sample.shard}: sample {sample.key}"

    def _descriptor(self, i: int) -> int:
        shard = self.index.shard_of(i)
        if shard not in self._open:
            self._open[shard] = os.open(self.folder / self.index.manifest.shards[shard].file, os.O_RDONLY)
            if len(self._open) > OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}
