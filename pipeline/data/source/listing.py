"""The image and annotation files in a folder or a zip: their list, and the bytes of one."""

import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common import files
from pipeline.common.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_FILE_BYTES = files.MOST_IMAGE
"""A zip of a megabyte may claim gigabytes; larger files are not read."""

_ROOTED = re.compile(r"\A(\.?/)+")  # of paths like /a.jpg and ./a.jpg
_ENTRY = b"PK\1\2"
"""What an entry of a zip's list begins with."""
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error, zlib.error)
"""What `zipfile` raises on damaged and odd zips; RuntimeError includes NotImplementedError."""


class File(NamedTuple):
    """A file: its path, its size in bytes and, in a zip, its CRC32 and its name there."""

    path: str
    size: int
    crc32: int = 0
    member: str = ""


def is_image(path: str) -> bool:
    """Whether a path has an image's ending, and no hidden or `__MACOSX` folder in it."""
    return path.lower().endswith(SUFFIXES) and not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether a path is of the kind that people do not see."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def list_folder(folder: Path) -> list[File]:
    """The images below a folder; links to folders are not followed.

    Raises:
        UserError: a folder cannot be listed, or an image is missing or no file.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed: {error.strerror}") from None

    found = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        relative = os.path.relpath(parent, folder)
        for name in filter(is_image, names):
            path = os.path.join(parent, name)
            try:
                status = os.stat(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}; a broken link?") from None
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: not a file; move it away")
            found.append(File(name if relative == "." else f"{relative}/{name}", status.st_size))
    return found


class FileReader:
    """Lists and reads the files of a folder or a zip.

    Picklable, and safe to inherit by fork: the zip's list is read once, but each process opens the zip itself.
    """

    def __init__(self, location: Path) -> None:
        self.location = location
        self._is_zip = location.is_file()
        self._archive: zipfile.ZipFile | None = None
        self._process = 0

    def files(self, wanted: Callable[[str], bool]) -> list[File]:
        """The images of a folder, or the files of a zip whose path is `wanted`.

        Raises:
            UserError: an image of the folder is no file, the zip is damaged, has two files of one name, or one that is
                encrypted or of an unknown compression.
        """
        if not self._is_zip:
            return list_folder(self.location)
        try:
            members = self._opened().infolist()
        except _ZIP_ERRORS as error:
            raise UserError(f"{self.location}: damaged zip: {error}; copy it again") from None
        found: dict[str, File] = {}
        for member in members:
            if _ENTRY in member.extra or _ENTRY in member.comment:  # its length is damaged: the next one would be lost
                raise UserError(f"{self.location}: damaged zip: {member.filename}: no end; copy it again")
            path = _ROOTED.sub("", member.filename)
            if member.is_dir() or not wanted(path):
                self._check_name(member)
                continue
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(
                    f"{self.location}: {path}: encrypted or of an unknown compression; unpack the zip first"
                )
            if path in found:
                raise UserError(f"{self.location}: {path} is in it twice; a damaged list, or a zip to be made anew")
            found[path] = File(path, member.file_size, member.CRC, member.filename)
        return [*found.values()]

    def ignored(self, wanted: Callable[[str], bool]) -> dict[str, int]:
        """How many files there are beside those that are `wanted` and hidden ones: ending -> number, most first."""
        if self._is_zip:
            paths = [member.filename for member in self._opened().infolist() if not member.is_dir()]
        else:
            paths = [
                os.path.relpath(os.path.join(parent, name), self.location)
                for parent, _, names in os.walk(self.location)
                for name in names
            ]
        paths = [_ROOTED.sub("", path) for path in paths]
        others = [path for path in paths if not wanted(path) and not is_hidden(path)]
        endings = Counter(os.path.splitext(path)[1].lower() or "without an ending" for path in others)
        return dict(sorted(endings.items(), key=lambda each: (-each[1], each[0])))

    def _check_name(self, member: zipfile.ZipInfo) -> None:
        """An image whose name in the list is damaged looks like another file: one that would be left out."""
        try:
            if "\0" in member.orig_filename:  # where zipfile ends a name
                raise zipfile.BadZipFile("a NUL in a name")
            with suppress(NotImplementedError, RuntimeError):  # it cannot be read, and need not be
                self._opened().open(member).close()
        except _ZIP_ERRORS as error:
            reason = f"{member.filename}: {error}"
            raise UserError(f"{self.location}: damaged zip: {reason}; copy it again") from None

    def read(self, file: File) -> bytes:
        """The bytes of one file.

        Raises:
            OSError: it cannot be read, is damaged inside the zip, or is larger than listed or than `MAX_FILE_BYTES`.
        """
        if file.size > MAX_FILE_BYTES:
            raise OSError(f"{file.size:,} bytes, more than {MAX_FILE_BYTES:,}")
        if not self._is_zip:
            return files.read_bytes(self.location / file.path, MAX_FILE_BYTES)
        try:
            # It compares the name in front of the file with the list's, and the CRC32 at the end.
            with self._opened().open(file.member) as stream:
                data = stream.read(file.size)
        except KeyError:
            raise OSError("no longer in the zip") from None
        except _ZIP_ERRORS as error:
            raise OSError(f"damaged in the zip ({error})") from None
        if len(data) != file.size:
            raise OSError("damaged in the zip (shorter than its list says)")
        return data

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.location)
        elif self._process != os.getpid():
            # Forked: the list is shared, which takes CelebA's zip 2 s to read; the position in the file must not be.
            self._archive.fp = self.location.open("rb")
        self._process = os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archive": None}
