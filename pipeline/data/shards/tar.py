"""Tars whose bytes depend on their members alone: no time, owner or mode of the machine that writes them."""

import tarfile
from typing import Self

BLOCK = tarfile.BLOCKSIZE
MAX_MEMBER_BYTES = 2**28
"""A tar with a larger member, or header that claims one, is refused unread."""


class BoundedHeader(tarfile.TarInfo):
    """Refuses negative sizes, with which `tarfile` goes round in circles, and long headers that extend the next one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As `TarInfo.frombuf`. Raises tarfile.ReadError, as `check_size`; large files are for the reader to refuse."""
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or not member.isreg():
            check_size(member)
        return member


def check_size(member: tarfile.TarInfo) -> None:
    """Raises tarfile.ReadError if a member's size is negative or above `MAX_MEMBER_BYTES`."""
    if not 0 <= member.size <= MAX_MEMBER_BYTES:
        raise tarfile.ReadError(f"{member.name!r:.100} of {member.size:,} bytes, {MAX_MEMBER_BYTES:,} are allowed")


def header(name: str, size: int) -> bytes:
    """Of a regular file with the defaults of `tarfile`: mode 0644, owner 0, time 0.

    Raises:
        ValueError: the name is too long for one header.
    """
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def is_header(block: bytes, name: str, size: int, own: bool) -> bool:
    """Whether `block` is the header of this member; `own`: exactly as we write it, else by any writer."""
    try:
        if own:
            return block == header(name, size)
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size == size
    except (tarfile.HeaderError, ValueError):
        return False


def is_whole_header(block: bytes, size: int) -> bool:
    """Whether `block` is an undamaged header of a member of `size` bytes; `is_header` is ten times as slow."""
    stated, checksum = block[124:136].strip(b" \0"), block[148:156].strip(b" \0")
    try:
        return int(stated, 8) == size and int(checksum, 8) == sum(block) - sum(block[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def padding(size: int) -> int:
    """Zero bytes after a member of `size` bytes, up to the next block."""
    return -size % BLOCK


def ending(size: int) -> int:
    """Zero bytes at the end of a tar whose members take `size` bytes: two blocks, then up to a whole record."""
    return 2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE
