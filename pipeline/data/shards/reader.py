"""A shards folder opened for random access: every sample that is read is checked."""

import os
import resource
import zlib
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import json_text
from pipeline.data.shards.format import COLUMNS, Manifest, Sample, ShardError, load_manifest, read_index
from pipeline.data.shards.tar import BLOCK, is_whole_header

# Open tars per reader: 128 where a process may have the usual 1,024 files open.
OPEN_SHARDS = min(128, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)


class ShardReader:
    """Random access to the samples of a folder, in the order of its shards. Every read is checked against its CRC32.

    Picklable, and safe to inherit by fork: tars are opened where they are read. One reader per thread.
    In memory, a sample takes about 70 bytes and the longest key.

    Raises:
        UserError: as `load_manifest`.
        ShardError: an index is missing, damaged, or of other shards than the manifest.
    """

    def __init__(self, folder: Path) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self.folder = folder
        self.manifest = load_manifest(folder)
        self.columns = _columns(folder, self.manifest)
        self._starts: list[int] = np.cumsum([0, *(shard.samples for shard in self.manifest.shards)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, i: int) -> str:
        """Key of sample `i`."""
        key: bytes = self.columns["key"][i]
        return key.decode()

    def name(self, i: int) -> str:
        """Shard and key of sample `i`, for messages."""
        return f"{self.folder / self.manifest.shards[self._shard_of(i)].file}: sample {self.key(i)}"

    def locate(self, i: int) -> Sample:
        """Where sample `i` is. Raises IndexError outside of 0 <= i < len."""
        shard = self.manifest.shards[self._shard_of(i)].file
        numbers = {column: int(self.columns[column][i]) for column in COLUMNS}
        return Sample(self.key(i), shard, self.columns["extension"][i].decode(), **numbers)

    def read(self, i: int) -> tuple[str, bytes]:
        """Key and image bytes of sample `i`; raises as `image`."""
        return self.key(i), self.image(i)

    def image(self, i: int) -> bytes:
        """Image bytes of sample `i`.

        Raises:
            IndexError: outside of 0 <= i < len.
            ShardError: the shard is missing, short, or its bytes differ from the CRC32.
        """
        sample = self.locate(i)
        data = self._bytes(i, sample.offset - BLOCK, BLOCK + sample.length)
        # The image is found without its header; but other readers lose what stands behind a damaged one.
        if not is_whole_header(data[:BLOCK], sample.length):
            raise ShardError(f"{self.name(i)}: its tar header is damaged; run `verify` on the folder")
        return self._checked(i, data[BLOCK:], sample.crc32)

    def metadata(self, i: int) -> dict[str, Any]:
        """The `.json` of sample `i`; {} where it has none. Raises as `image`."""
        sample = self.locate(i)
        if sample.meta_offset < 0:
            return {}
        content = self._checked(i, self._bytes(i, sample.meta_offset, sample.meta_length), sample.meta_crc32)
        try:
            value = json_text.parse(content)
        except ValueError:
            raise ShardError(f"{self.name(i)}: its .json is not JSON") from None
        return value if isinstance(value, dict) else {}

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def _shard_of(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return bisect_right(self._starts, i) - 1

    def _bytes(self, i: int, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor(self._shard_of(i)), length, offset)
        except OSError as error:
            raise ShardError(f"{self.name(i)}: the shard cannot be read: {error.strerror}") from None
        if len(data) != length:
            raise ShardError(f"{self.name(i)}: the tar ends before it; run `verify` on the folder")
        return data

    def _checked(self, i: int, data: bytes, crc32: int) -> bytes:
        if zlib.crc32(data) != crc32:
            raise ShardError(f"{self.name(i)}: damaged, its CRC32 differs from the index; run `verify` on the folder")
        return data

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            path = self.folder / self.manifest.shards[shard].file
            self._open[shard] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO does not keep us waiting
            if len(self._open) > OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]


def _columns(folder: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """What the indexes say of all samples: one array a column, as Python's own objects would take ten times as much."""
    parts: dict[str, list[NDArray[Any]]] = {column: [np.zeros(0, np.int64)] for column in COLUMNS}
    parts |= {"key": [np.zeros(0, np.bytes_)], "extension": [np.zeros(0, np.bytes_)]}
    for shard in manifest.shards:
        index = read_index(folder / shard.file, shard)
        for column in COLUMNS:
            parts[column].append(np.array(getattr(index, column), np.int64))
        parts["key"].append(np.array([key.encode() for key in index.keys], np.bytes_))
        parts["extension"].append(np.array(index.extensions, np.bytes_))
    return {column: np.concatenate(part) for column, part in parts.items()}
