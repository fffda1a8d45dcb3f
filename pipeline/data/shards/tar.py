"""Tars whose bytes depend on their members alone: no time, owner or mode of the machine that writes them."""

import tarfile
from typing import Final

BLOCK = tarfile.BLOCKSIZE
FORMAT: Final = tarfile.USTAR_FORMAT


def member(name: str, size: int) -> tarfile.TarInfo:
    """A regular file of mode 0644, owner 0 and time 0, which are the defaults of `tarfile`."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def is_header(block: bytes, name: str, size: int, own: bool) -> bool:
    """Whether `block` is the header of this member; `own`: exactly as we write it, else by any writer."""
    try:
        if own:
            return block == member(name, size).tobuf(FORMAT)
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size == size
    except (tarfile.HeaderError, ValueError):  # tobuf refuses names that are too long for one header
        return False


def padding(size: int) -> int:
    """Zero bytes after a member of `size` bytes, up to the next block."""
    return -size % BLOCK


def ending(size: int) -> int:
    """Zero bytes at the end of a tar whose members take `size` bytes: two blocks, then up to a whole record."""
    return 2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE
