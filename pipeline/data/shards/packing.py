"""One shard: encode its records, write its tar and its index; and the manifest over all of them."""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.common.errors import UserError
from pipeline.common.files import os_errors_named, replacing, sha256, write_text
from pipeline.data.image_check import EncodedImage, centre_square, check, silent
from pipeline.data.shards.format import (
    MANIFEST,
    Index,
    Manifest,
    Rejected,
    Sample,
    ShardEntry,
    index_path,
    make_index,
    read_index,
)
from pipeline.data.shards.tar import BLOCK, ending, header, padding
from pipeline.data.source.photographs import Record, Source


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


def cut(folder: Path, records: list[Record], samples_per_shard: int) -> list[Task]:
    """The shards that `records` make."""
    starts = range(0, len(records), samples_per_shard)
    parts = [tuple(records[start : start + samples_per_shard]) for start in starts]
    return [Task(folder / f"shard-{number:06d}.tar", part) for number, part in enumerate(parts)]


def write_shard(shared: tuple[Source, Options], task: Task) -> None:
    """Write one tar and flush it to disk, then its index: where an index is, its tar is whole."""
    path = task.path
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    with os_errors_named(path):
        with replacing(path) as temporary:
            with temporary.open("wb", buffering=2**20) as stream, silent():
                for record in task.records:
                    try:
                        image, metadata = _encode(*shared, record)
                    except UserError as error:
                        rejected.append(Rejected(record.name, str(error).removeprefix(f"{record.name}: ")))
                        continue
                    samples.append(_append(stream, path.name, record.key, image, metadata))
                stream.write(bytes(ending(stream.tell())))
            index = make_index(path.name, temporary, samples, rejected)
        write_index(path, index)


def _encode(source: Source, options: Options, record: Record) -> tuple[EncodedImage, bytes]:
    """Image and `.json` of one record. Raises UserError if the image cannot be used."""
    try:
        data = source.read(record.name)
    except OSError as error:
        raise UserError(f"{record.name}: cannot be read: {error.strerror or error}") from None
    landmarks: dict[str, Any] = dict(record.landmarks)
    if options.image_size is None:
        image = check(data, record.name)
    else:
        image, crop = centre_square(data, record.name, options.image_size, options.crop, options.quality or 90)
        landmarks = {name: crop.point(*point) for name, point in landmarks.items()}
    metadata = {
        "attributes": record.attributes,
        "file": record.name,
        "height": image.height,
        "landmarks": landmarks,
        "width": image.width,
    }
    return image, json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode()


def _append(stream: BinaryIO, shard: str, key: str, image: EncodedImage, metadata: bytes) -> Sample:
    """Write both members of a sample at the end of a tar."""
    length, meta_length = len(image.data), len(metadata)
    offset = stream.tell() + BLOCK
    for name, data in ((f"{key}.{image.extension}", image.data), (f"{key}.json", metadata)):
        stream.write(header(name, len(data)) + data + bytes(padding(len(data))))
    return Sample(
        key, shard, image.extension, offset, length, zlib.crc32(image.data),
        offset + length + padding(length) + BLOCK, meta_length, zlib.crc32(metadata), image.width, image.height,
    )  # fmt: skip


def write_index(shard: Path, index: Index) -> None:
    """Write the index of a shard: JSON, one line per column."""
    columns = vars(index) | {"rejected": [asdict(each) for each in index.rejected]}
    lines = ",\n".join(f'"{name}":{json.dumps(columns[name], separators=(",", ":"))}' for name in sorted(columns))
    write_text(index_path(shard), f"{{\n{lines}\n}}\n")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, unless it is there and says the same."""
    path = folder / MANIFEST
    text = json.dumps(manifest.as_dict(), indent=2, sort_keys=True) + "\n"
    with os_errors_named(path):
        if not (path.is_file() and path.read_bytes() == text.encode()):
            write_text(path, text)


def gather(shards: list[Path], **described: Any) -> Manifest:
    """The manifest of these shards, from their indexes; `described` are its other fields."""
    indexes = [read_index(shard) for shard in shards]
    entries = tuple(
        ShardEntry(shard.name, index.samples, index.bytes, index.sha256, sha256(index_path(shard)))
        for shard, index in zip(shards, indexes, strict=True)
    )
    return Manifest(shards=entries, rejected=tuple(each for index in indexes for each in index.rejected), **described)


def reject_at_most(rejected: tuple[Rejected, ...], limit: int) -> None:
    """Raise a UserError that names the first few when more than `limit` inputs were rejected."""
    if len(rejected) > limit:
        few = "; ".join(f"{each.file}: {each.reason}" for each in rejected[:3])
        more = "; ..." if len(rejected) > 3 else ""
        raise UserError(
            f"{len(rejected)} images rejected, {limit} allowed ({few}{more}); "
            f"leave them out with --max-rejected {len(rejected)} (in a configuration: data.max_rejected)"
        )
