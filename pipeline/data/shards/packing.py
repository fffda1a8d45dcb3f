"""One shard: encode its records, lay out the tar, write tar and index; and the manifest over all of them."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.common.errors import UserError
from pipeline.common.files import fsync, os_errors_named, replacing, sha256, write_json, write_text
from pipeline.common.processes import stoppable
from pipeline.data.image_check import EncodedImage, ImageRejected, centre_square, check, describe
from pipeline.data.shards.format import (
    COLUMNS,
    MANIFEST,
    SCHEMA,
    Manifest,
    Rejected,
    ShardEntry,
    index_path,
    read_index,
)
from pipeline.data.shards.tar import BLOCK, ending, header, padding
from pipeline.data.source.celeba import Record, Source

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_ROW = ("keys", "extensions", *COLUMNS)
_PIECE_BYTES = 2**18
FLUSHES = 16
"""Flushes to disk that are under way at a time."""
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True)
class Options:
    """Everything but the source that decides the bytes of the shards.

    `quality` counts only with an `image_size`; without `validate` no image is decoded.
    """

    split: str
    samples_per_shard: int
    image_size: int | None
    crop: int | None
    quality: int | None
    validate: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For the plan and the manifest, where shards are validated unless it says that they are not."""
        values = asdict(self)
        if self.validate:
            del values["validate"]
        return values


@dataclass(frozen=True)
class Task:
    """One shard to write."""

    path: Path
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Packed:
    """What the manifest says of one shard."""

    path: Path
    entry: ShardEntry
    rejected: tuple[Rejected, ...]


def packed(path: Path) -> Packed:
    """Of a shard that is on disk, from its index."""
    index = read_index(path)
    return Packed(path, shard_entry(path, index), tuple(Rejected(**each) for each in index["rejected"]))


def write_shard(shared: tuple[Source, Options], task: Task) -> Packed:
    """Write one tar, and its index under another name.

    Nothing is flushed to disk, which would keep a worker waiting: `settle_shard` and `flush_shards` do.
    """
    path = task.path
    with os_errors_named(path):
        index_path(path).unlink(missing_ok=True)  # of a tar that was cut: it would vouch for the new one too soon
        with replacing(path, flush=False) as temporary:
            tar, rows, rejected = _write_tar(temporary, *shared, task.records)
        index = {
            "schema": SCHEMA,
            "shard": path.name,
            "bytes": tar.size,
            "sha256": tar.digest.hexdigest(),
            "samples": len(rows),
            "rejected": [asdict(each) for each in rejected],
        }
        columns = zip(*rows, strict=True) if rows else ((),) * len(_ROW)
        text = _index_text(index | dict(zip(_ROW, columns, strict=True))).encode()
        _unsettled(path).write_bytes(text)
    return Packed(path, _entry(path, index, hashlib.sha256(text).hexdigest()), tuple(rejected))


def settle_shard(path: Path) -> None:
    """Flush a tar to disk, and only then give its index its name: where an index is, its tar is whole."""
    with os_errors_named(path):
        fsync(path)
        _unsettled(path).replace(index_path(path))


def forget_unsettled(paths: list[Path]) -> None:
    """Remove what `write_shard` left of shards that nobody will settle; they will be written again."""
    for path in paths:
        _unsettled(path).unlink(missing_ok=True)


def _unsettled(shard: Path) -> Path:
    """The name of an index before its tar is on the disk: a leftover's."""
    return shard.with_name(f".{shard.stem}-unsettled.tmp.index.json")


def _write_tar(
    path: Path, source: Source, options: Options, records: Iterable[Record]
) -> tuple["_Tar", list[tuple[Any, ...]], list[Rejected]]:
    """The tar; a row of the index for each sample in it; and what is not."""
    rows: list[tuple[Any, ...]] = []
    rejected: list[Rejected] = []
    with path.open("wb") as stream:
        tar = _Tar(stream)
        for record in stoppable(records):
            try:
                image, metadata, crc32 = _encode(source, options, record)
            except ImageRejected as reason:
                rejected.append(Rejected(record.name, str(reason)))
                continue
            rows.append(tar.add(record.key, image, metadata, crc32))
        tar.end()
    return tar, rows, rejected


def _encode(source: Source, options: Options, record: Record) -> tuple[EncodedImage, bytes, int]:
    """Image, `.json` and the image's CRC32 of one record, checked."""
    try:
        data, crc32 = source.read(record.name)
    except OSError as error:
        raise ImageRejected(f"cannot be read: {error.strerror or error}") from None
    if options.image_size is None:
        image = check(data) if options.validate else describe(data)
        text, in_order = _template(record.attribute_names, record.landmark_names)
        values = f"{image.width} {image.height} {record.attribute_values} {record.landmark_values}".split()
        values.append(encode_basestring_ascii(record.name))
        return image, (text % in_order(values)).encode(), crc32
    image, crop = centre_square(data, options.image_size, options.crop, options.quality or 90)
    metadata = {
        "attributes": record.attributes,
        "file": record.name,
        "height": image.height,
        "landmarks": {name: crop.point(*point) for name, point in record.landmarks.items()},
        "width": image.width,
    }
    return image, _JSON.encode(metadata).encode(), zlib.crc32(image.data)


@lru_cache(maxsize=8)
def _template(attributes: tuple[str, ...], landmarks: tuple[str, ...]) -> tuple[str, Callable[[Any], tuple[str, ...]]]:
    """A `.json` with %s for its values; and what orders them, given width, height, attributes, landmarks and the file.

    Several times as fast as an encoder. Of columns of one name the last counts, as in a dict.
    """
    numbers = sorted({name: 2 + place for place, name in enumerate(attributes)}.items())
    points = sorted({name: 2 + len(attributes) + 2 * place for place, name in enumerate(landmarks)}.items())
    quoted = {name: _JSON.encode(name).replace("%", "%%") for name in attributes + landmarks}
    text = (
        f'{{"attributes":{{{",".join(f"{quoted[name]}:%s" for name, _ in numbers)}}},"file":%s,"height":%s'
        f',"landmarks":{{{",".join(f"{quoted[name]}:[%s,%s]" for name, _ in points)}}},"width":%s}}'
    )
    places = [*(at for _, at in numbers), -1, 1, *(at + axis for _, at in points for axis in (0, 1)), 0]
    return text, itemgetter(*places)


class _Tar:
    """A tar under way: hashed, and written in large pieces."""

    def __init__(self, stream: BinaryIO) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._stream = stream
        self._held: list[bytes] = []
        self._written = 0

    def add(self, key: str, image: EncodedImage, metadata: bytes, crc32: int) -> tuple[Any, ...]:
        """Append one sample, `crc32` its image's; return its row in the index, in the order of `_ROW`."""
        data, length, meta_length = image.data, len(image.data), len(metadata)
        zeros, meta_zeros = padding(length), padding(meta_length)
        offset = self.size + BLOCK
        meta_offset = offset + length + zeros + BLOCK
        self._held += (
            header(f"{key}.{image.extension}", length), data, _ZEROS[:zeros],
            header(f"{key}.json", meta_length), metadata, _ZEROS[:meta_zeros],
        )  # fmt: skip
        self.size = meta_offset + meta_length + meta_zeros
        if self.size - self._written >= _PIECE_BYTES:
            self._write()
        numbers = (offset, length, crc32, meta_offset, meta_length, zlib.crc32(metadata))
        return (key, image.extension, *numbers, image.width, image.height)

    def end(self) -> None:
        """Append what ends a tar, and write all that is left."""
        zeros = ending(self.size)
        self._held.append(bytes(zeros))
        self.size += zeros
        self._write()

    def _write(self) -> None:
        piece = b"".join(self._held)
        self._held.clear()
        self.digest.update(piece)
        self._stream.write(piece)
        self._written = self.size


def flush_shards(paths: list[Path]) -> None:
    """Flush the indexes of shards to disk, and their folders: at once, a journal takes many in one go."""
    with ThreadPoolExecutor(FLUSHES) as threads:
        for files in (map(index_path, paths), {path.parent for path in paths}):
            list(threads.map(fsync, files))


def write_index(shard: Path, index: dict[str, Any]) -> None:
    """Write the index of a shard."""
    write_text(index_path(shard), _index_text(index))


def _index_text(index: dict[str, Any]) -> str:
    """JSON, one line per column."""
    lines = (f"{json.dumps(name)}:{json.dumps(index[name], separators=(',', ':'))}" for name in sorted(index))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def shard_entry(shard: Path, index: dict[str, Any]) -> ShardEntry:
    """The manifest's line for a shard whose index is on disk."""
    return _entry(shard, index, sha256(index_path(shard)))


def _entry(shard: Path, index: dict[str, Any], index_sha256: str) -> ShardEntry:
    return ShardEntry(shard.name, index["samples"], index["bytes"], index["sha256"], index_sha256)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, unless it is there and says the same."""
    path = folder / MANIFEST
    value = json.loads(json.dumps(manifest.as_dict()))
    with os_errors_named(path):
        try:
            if json.loads(path.read_bytes()) == value:
                return
        except (FileNotFoundError, ValueError):
            pass
        write_json(path, value)


def reject_at_most(rejected: tuple[Rejected, ...], limit: int) -> None:
    """Raise a UserError that names the first few when more than `limit` inputs were rejected."""
    if len(rejected) > limit:
        few = "; ".join(f"{each.file}: {each.reason}" for each in rejected[:3])
        more = "; ..." if len(rejected) > 3 else ""
        raise UserError(
            f"{len(rejected)} images rejected, {limit} allowed ({few}{more}); "
            f"leave them out with --max-rejected {len(rejected)} (in a configuration: data.max_rejected)"
        )
