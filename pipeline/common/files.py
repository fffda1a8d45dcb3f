"""Files and folders that are either whole or not there: temporary name, fsync, rename, fsync of the parent folder."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` once the block has succeeded.

    Whatever goes wrong in the block, `path` is untouched and the temporary file is gone.
    The suffix is kept, so that writers which go by it (Pillow, safetensors) work.

    Args:
        flush: to disk, the file before the rename and the folder behind it; without, that is left to the caller.
    """
    path = path.resolve()  # what a link points to is written, the link stays
    if path.exists() and not path.is_file():
        reason = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(reason, os.strerror(reason) if path.is_dir() else "not a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named here and made by the writer: Ctrl-C finds no moment between making it and being ready to remove it.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp{path.suffix}")
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
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` for files; once the block has succeeded, flush it and put it in `path`'s place.

    Whatever goes wrong in the block, `path` is untouched and the new folder is gone.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    try:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for written in temporary.iterdir():
            fsync(written)
        fsync(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        fsync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
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
