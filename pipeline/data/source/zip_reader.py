"""Zip files of images: their list, and one member's bytes, without `zipfile`'s object and file position for each."""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from itertools import starmap
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.common.errors import UserError

_LIKELY_EXTRA_BYTES = 64
"""Read beyond a member's header and name at once: there the local extra field is."""
_LOCAL = struct.Struct("<26x2H")
_MEMBER = struct.Struct("<4s2xBx2H4x3L3H8xL")
_END = struct.Struct("<4s4H2LH")
_END_64, _LOCATOR_64 = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_LONGEST_COMMENT = 0xFFFF
_NEWEST_VERSION = 63  # what `zipfile` takes
_UTF_8 = 0x800  # the flag of a name
_IN_64_BITS = 0xFFFFFFFF  # the number is elsewhere
_AS_FILE = attrgetter(*("filename", "file_size", "CRC", "header_offset", "compress_size", "compress_type", "flag_bits"))
_ROOTED = re.compile(r"\A(\.?/)+")  # of paths like /a.jpg and ./a.jpg
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class File(NamedTuple):
    """Where an image is: its path in the folder or the zip and, in a zip, how it is stored there."""

    path: str
    size: int
    crc32: int = 0
    offset: int = 0
    compressed: int = 0
    method: int = zipfile.ZIP_STORED
    flags: int = 0


def list_files(path: Path, wanted: Callable[[str], bool]) -> list[File]:
    """The files in a zip whose path is `wanted`.

    Raises:
        UserError: the zip is damaged, or one of them is encrypted or of an unknown compression.
    """
    try:
        files = _directory(path)
        if files is None:
            with zipfile.ZipFile(path) as archive:
                files = list(starmap(File, map(_AS_FILE, archive.infolist())))
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: damaged zip: {error}; copy it again") from None
    if any(file.path.startswith(("/", "./")) for file in files):
        files = [file._replace(path=_ROOTED.sub("", file.path)) for file in files]
    files = [file for file in files if wanted(file.path) and not file.path.endswith("/")]
    for file in files:
        if file.flags & 1 or file.method not in _METHODS:
            raise UserError(f"{path}: {file.path}: encrypted or of an unknown compression; unpack the zip first")
    return files


def read_file(path: Path, file: File) -> bytes:
    """The bytes of one file of a zip that is not open; raises as `read`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read(descriptor, file)
    finally:
        os.close(descriptor)


def read(descriptor: int, file: File) -> bytes:
    """The bytes of one file, by the zip's open descriptor.

    Raises:
        OSError: they cannot be read, or are damaged.
    """
    # pread: forked workers share the descriptor, but no position in it.
    likely = _LOCAL.size + len(file.path) + _LIKELY_EXTRA_BYTES + file.compressed
    block = os.pread(descriptor, likely, file.offset)
    if len(block) < _LOCAL.size or not block.startswith(b"PK\x03\x04"):
        raise OSError("damaged in the zip (no local header)")
    of_name, of_extra = _LOCAL.unpack_from(block)
    skip = _LOCAL.size + of_name + of_extra
    data = block[skip : skip + file.compressed]
    if len(data) < file.compressed:
        data = os.pread(descriptor, file.compressed, file.offset + skip)
    if file.method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        except zlib.error as error:
            raise OSError(f"damaged in the zip ({error})") from None
    if len(data) != file.size or zlib.crc32(data) != file.crc32:
        raise OSError("damaged in the zip (CRC32 differs)")
    return data


def _directory(path: Path) -> list[File] | None:
    """Every file that the zip lists; None: leave it to `zipfile`, which takes odd ones too and names damage."""
    with path.open("rb") as stream:
        place = _find_directory(stream)
        if place is None:
            return None
        stream.seek(place[0])
        content = stream.read(place[1])
    files: list[File] = []
    position = 0
    while position < len(content):
        if len(content) - position < _MEMBER.size:
            return None
        (signature, version, flags, method, crc32, compressed, size, of_name, of_extra, of_comment, offset) = (
            _MEMBER.unpack_from(content, position)
        )
        start = position + _MEMBER.size
        name = content[start : start + of_name]
        in_64_bits = _IN_64_BITS in (compressed, size, offset)
        if signature != b"PK\x01\x02" or version > _NEWEST_VERSION or in_64_bits or b"\0" in name:
            return None
        text = name.decode("ascii" if name.isascii() else "utf-8" if flags & _UTF_8 else "cp437")
        files.append(File(text, size, crc32, offset, compressed, method, flags))
        position = start + of_name + of_extra + of_comment
    return files if position == len(content) else None


def _find_directory(stream: BinaryIO) -> tuple[int, int] | None:
    """Offset and size of the list of members, where it stands right before the end records; else None."""
    size = stream.seek(0, os.SEEK_END)
    before = max(0, size - _END.size - _LONGEST_COMMENT - _LOCATOR_64.size - _END_64.size)
    stream.seek(before)
    tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < _END.size:
        return None
    *_, length, start, comment = _END.unpack_from(tail, end)
    if end + _END.size + comment != len(tail):
        return None
    locator = end - _LOCATOR_64.size
    if tail[max(0, locator) : end].startswith(b"PK\x06\x07"):
        end = locator - _END_64.size
        if end < 0 or not tail.startswith(b"PK\x06\x06", end):
            return None
        *_, length, start = _END_64.unpack_from(tail, end)
    return (start, length) if start + length == before + end else None
