"""Files and folders that are either whole or not there: temporary name, fsync, rename, fsync of the parent folder."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from pipeline.common import json_text
from pipeline.common.errors import UserError

TEMPORARY = re.compile(r"\.(.+)-[0-9a-f]{8}\.(?:tmp|old)(\.[^.]+)?", re.DOTALL)
"""Names that `replacing` and `replacing_folder` give while they write; a file's keeps its suffix, a folder has none."""
MOST_IMAGE = 2**28
"""Bytes of the largest image file that is read; none that we take needs more."""
MOST_JSON = 16 * 2**20
"""Bytes of the largest JSON file that `read_json` reads."""


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` once the block has succeeded.

    Whatever goes wrong in the block, `path` is untouched and the temporary file is gone.
    The suffix is kept, so that writers which go by it (Pillow, safetensors) work.

    Args:
        flush: to disk, the file before the rename and the folder behind it; without, that is left to the caller.
    """
    path = Path(os.path.realpath(path))  # what a link points to is written, the link stays
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if path.exists() and not path.is_file():
        reason = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(reason, os.strerror(reason) if path.is_dir() else "not a file", str(path))
    # Named here and made by the writer: Ctrl-C finds no moment between making it and being ready to remove it.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp{path.suffix}")
    with making_folder(path.parent):
        try:
            yield temporary
            if flush:
                fsync(temporary)
            temporary.replace(path)
        except OSError as error:
            error.filename = error.filename or str(path)  # a write that finds no room does not say where
            raise
        finally:
            temporary.unlink(missing_ok=True)
    if flush:
        fsync(path.parent)


@contextmanager
def replacing_folder(path: Path, check: Callable[[Path], None] = lambda folder: None) -> Iterator[Path]:
    """Yield a new folder beside `path` for files; once the block has succeeded, flush it and put it in `path`'s place.

    Whatever goes wrong in the block, `path` is untouched and the new folder is gone.

    Args:
        check: raises if the folder that is to be replaced, which it gets under another name, must stay.
    """
    mark = secrets.token_hex(4)  # so that nothing of anybody else has these names
    temporary, old = (path.with_name(f".{path.name}-{mark}.{kind}") for kind in ("tmp", "old"))
    with making_folder(path.parent):
        try:
            temporary.mkdir()
            yield temporary
            for written in temporary.iterdir():
                fsync(written)
            fsync(temporary)
            try:
                if path.exists():
                    path.rename(old)
                    check(old)
                temporary.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise
            fsync(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def making_folder(path: Path) -> Iterator[None]:
    """Make a folder with its parents. If the block fails, those that were made and are empty are taken away again."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for made in missing:
            with suppress(OSError):  # not made, or not empty
                made.rmdir()
        raise


def leftovers(folder: Path, names: str) -> list[Path]:
    """What writers that were killed have left in `folder`; no links.

    Args:
        names: a regular expression: of the files and folders that they were writing.
    """
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        parts = TEMPORARY.fullmatch(path.name)
        if parts and re.fullmatch(names, parts[1] + (parts[2] or "")) and not path.is_symlink():
            found.append(path)
    return found


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove what `leftovers` finds: files whose name has a suffix, folders whose name has none."""
    for left in leftovers(folder, names):
        if left.is_file() and left.suffix not in (".tmp", ".old"):
            with suppress(OSError):  # one that cannot be removed is in nobody's way
                left.unlink()
        elif left.is_dir() and left.suffix in (".tmp", ".old"):
            shutil.rmtree(left, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_bytes(path: Path, most: int) -> bytes:
    """What a file holds. Raises OSError, also if it is none (a named pipe) or has more than `most` bytes."""
    with open_file(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return content


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: if it cannot be read, is no file, or larger than anything of ours.
        ValueError: as `json_text.parse`, or half a character is in it.
    """
    value = json_text.parse(read_bytes(path, MOST_JSON))
    json.dumps(value, ensure_ascii=False).encode()  # half a character could not be printed or written again
    return value


def open_file(path: Path) -> BufferedReader:
    """Open a file to be read. What is none is an OSError: a named pipe would keep its reader waiting for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "not a file", str(path))
    return os.fdopen(descriptor, "rb")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors_named(path: Path) -> Iterator[None]:
    """Turn an OSError (disk full, read-only) into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}; fix that and run again") from None
