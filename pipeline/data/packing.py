"""One shard: encode its records, lay out the tar, write tar and index; and the manifest over all of them."""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.data.celeba import Record, Source
from pipeline.data.encoded import EncodedImage, ImageRejected, centre_square, check
from pipeline.data.pool import stoppable
from pipeline.data.shards import (
    COLUMNS,
    MANIFEST,
    SCHEMA,
    Manifest,
    Rejected,
    ShardEntry,
    index_path,
    os_errors_named,
)
from pipeline.data.tar import ending, header, padding
from pipeline.errors import UserError
from pipeline.files import replacing, sha256, write_json, write_text

_METADATA_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Options:
    """Everything but the source that decides the bytes of the shards; `quality` counts only with an `image_size`."""

    split: str
    samples_per_shard: int
    image_size: int | None
    crop: int | None
    quality: int | None


@dataclass(frozen=True)
class Task:
    """One shard to write."""

    path: Path
    records: tuple[Record, ...]


def write_shard(shared: tuple[Source, Options], task: Task) -> int:
    """Write one tar and its index; return the number of images looked at."""
    source, options = shared
    path = task.path
    columns: dict[str, list[Any]] = {name: [] for name in ("keys", "extensions", *COLUMNS)}
    rejected: list[Rejected] = []
    digest, position = hashlib.sha256(), 0
    with os_errors_named(path):
        with replacing(path) as temporary, temporary.open("wb") as stream:
            for record in stoppable(task.records):
                try:
                    image, metadata = _encode(source, options, record)
                except ImageRejected as reason:
                    rejected.append(Rejected(record.name, str(reason)))
                    continue
                block, row = _members(record.key, image, metadata, position)
                stream.write(block)
                digest.update(block)
                position += len(block)
                for name, value in row.items():
                    columns[name].append(value)
            end = bytes(ending(position))
            stream.write(end)
            digest.update(end)
        index = {
            "schema": SCHEMA,
            "shard": path.name,
            "bytes": position + len(end),
            "sha256": digest.hexdigest(),
            "samples": len(columns["keys"]),
            "rejected": [asdict(each) for each in rejected],
        }
        write_index(path, index | columns)
    return len(task.records)


def _encode(source: Source, options: Options, record: Record) -> tuple[EncodedImage, bytes]:
    """Image and `.json` of one record, checked."""
    try:
        data = source.read(record.name)
    except OSError as error:
        raise ImageRejected(f"cannot be read: {error.strerror or error}") from None
    landmarks: dict[str, Any] = record.landmarks
    if options.image_size is None:
        image = check(data)
    else:
        image, crop = centre_square(data, options.image_size, options.crop, options.quality or 90)
        landmarks = {name: crop.point(*point) for name, point in landmarks.items()}
    metadata = {
        "attributes": record.attributes,
        "file": record.name,
        "height": image.height,
        "landmarks": landmarks,
        "width": image.width,
    }
    return image, _METADATA_JSON.encode(metadata).encode()


def _members(key: str, image: EncodedImage, metadata: bytes, position: int) -> tuple[bytes, dict[str, Any]]:
    """The tar blocks of one sample that starts at `position`, and its row in the index."""
    image_header = header(f"{key}.{image.extension}", len(image.data))
    meta_header = header(f"{key}.json", len(metadata))
    image_zeros, meta_zeros = bytes(padding(len(image.data))), bytes(padding(len(metadata)))
    block = b"".join((image_header, image.data, image_zeros, meta_header, metadata, meta_zeros))
    offset = position + len(image_header)
    return block, {
        "keys": key,
        "extensions": image.extension,
        "offset": offset,
        "length": len(image.data),
        "crc32": zlib.crc32(image.data),
        "meta_offset": offset + len(image.data) + len(image_zeros) + len(meta_header),
        "meta_length": len(metadata),
        "meta_crc32": zlib.crc32(metadata),
        "width": image.width,
        "height": image.height,
    }


def write_index(shard: Path, index: dict[str, Any]) -> None:
    """Write the index of a shard, one line per column."""
    lines = (f"{json.dumps(name)}:{json.dumps(index[name], separators=(',', ':'))}" for name in sorted(index))
    write_text(index_path(shard), "{\n" + ",\n".join(lines) + "\n}\n")


def shard_entry(shard: Path, index: dict[str, Any]) -> ShardEntry:
    """The manifest's line for a shard whose index is on disk."""
    return ShardEntry(shard.name, index["samples"], index["bytes"], index["sha256"], sha256(index_path(shard)))


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
