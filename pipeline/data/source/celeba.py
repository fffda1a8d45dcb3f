"""A source of face images: CelebA as distributed (zip or folder), or any folder of JPEG and PNG files."""

import gc
import hashlib
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.errors import UserError
from pipeline.data.source import annotations, zip_reader
from pipeline.data.source.annotations import Table
from pipeline.data.source.zip_reader import File

ARCHIVE = "img_align_celeba.zip"
FOLDER = "img_align_celeba"
SUFFIXES = (".jpg", ".jpeg", ".png")
IN_THE_WILD = "img_celeba"
"""CelebA's pictures before they were aligned: the landmarks of the aligned ones are not theirs."""
# Where CelebA's own download keeps its annotation files, beside Img/.
ANNOTATION_FOLDERS = ("", "Anno", "Eval")
# Key, dot, extension must fit the 100 bytes of a tar header's name.
LONGEST_KEY = 80

_ANNOTATION_FILES = frozenset(f"{stem}{suffix}" for stem in annotations.STEMS for suffix in (".txt", ".csv"))
_PARTITIONS = {"0": 0, "1": 1, "2": 2}
_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_-]")


class Record(NamedTuple):
    """One image of a source, not yet read.

    Attributes and landmarks are numbers as text, and records share their names: CelebA has 200,000 of 40 attributes.
    """

    key: str
    name: str
    partition: int | None = None
    attribute_names: tuple[str, ...] = ()
    attribute_values: str = ""
    landmark_names: tuple[str, ...] = ()
    landmark_values: str = ""

    @property
    def attributes(self) -> dict[str, int]:
        """Attribute name -> value (-1 or 1 in CelebA); empty where the source has none."""
        return dict(zip(self.attribute_names, map(int, self.attribute_values.split()), strict=True))

    @property
    def landmarks(self) -> dict[str, list[int]]:
        """Landmark name -> [x, y] in pixels of the original; empty where the source has none."""
        values = map(int, self.landmark_values.split())
        return {name: [x, y] for name, x, y in zip(self.landmark_names, values, values, strict=True)}


class Source:
    """The images of a folder or a zip. Picklable; files are opened in the process that reads them."""

    def __init__(self, location: Path, files: dict[str, File], records: list[Record], fingerprint: str) -> None:
        self.location = location
        self.records = records
        self.fingerprint = fingerprint
        self._files = files
        self._is_archive = location.is_file()
        self._descriptor: int | None = None

    def read(self, name: str) -> tuple[bytes, int]:
        """The bytes of one image and their CRC32, by its record's name.

        Raises:
            OSError: it cannot be read, or is damaged inside the zip.
        """
        file = self._files[name]
        if not self._is_archive:
            data = (self.location / file.path).read_bytes()
            return data, zlib.crc32(data)
        if self._descriptor is None:
            self._descriptor = os.open(self.location, os.O_RDONLY)
        return zip_reader.read(self._descriptor, file), file.crc32

    def close(self) -> None:
        """Close the zip, if it is open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptor": None}


@contextmanager
def _without_collection() -> Iterator[None]:
    """Millions of small objects, none of them garbage: looking for some again and again takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collection()
def open_source(path: Path) -> Source:
    """List the images of `path` and read the annotations near it; no image is opened.

    Args:
        path: a zip, a folder that contains `img_align_celeba.zip` or `img_align_celeba/`, or any folder of images.

    Raises:
        UserError: nothing there, no images, a damaged zip, or a malformed annotation file.
    """
    location = _locate(path)
    inside: dict[str, File] = {}
    if location.is_file():
        files = zip_reader.list_files(location, lambda path: _is_image(path) or _is_annotation(path))
        inside = {name: file for file in reversed(files) if (name := file.path.rpartition("/")[2]) in _ANNOTATION_FILES}
        if inside:
            files = [file for file in files if _is_image(file.path)]
    else:
        files = _list_folder(location)
    if not files:
        raise UserError(f"{path}: no {', '.join(SUFFIXES)} images and no {ARCHIVE} in it")
    # One common folder says nothing about an image: so a zip, its folder and Kaggle's nested folder name images alike.
    parents = {file.path.rpartition("/")[0] for file in files}
    prefix = os.path.commonpath(parents) if "" not in parents else ""
    by_name = {file.path.removeprefix(prefix).lstrip("/") if prefix else file.path: file for file in files}
    tables, contents = _read_annotations(path, location, prefix, inside)
    lines = [f"{name}\0{file.size}\0{file.crc32}\n" for name, file in sorted(by_name.items())]
    digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape"))
    for stem in sorted(contents):
        digest.update(f"{stem}\0{hashlib.sha256(contents[stem]).hexdigest()}\n".encode())
    return Source(location, by_name, _records(by_name, tables), digest.hexdigest())


def _locate(path: Path) -> Path:
    """The zip or the folder that holds the images."""
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: not a folder and not a zip file, or a zip that is damaged or cut; copy it again")
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    if (path / ARCHIVE).is_file():
        return _locate(path / ARCHIVE)
    while (path / FOLDER).is_dir():
        path = path / FOLDER
    return path


def _is_image(path: str) -> bool:
    return (path.endswith(SUFFIXES) or path.lower().endswith(SUFFIXES)) and not _is_hidden(path)


def _is_hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path or ("__MACOSX" in path and "__MACOSX" in path.split("/"))


def _is_annotation(path: str) -> bool:
    return path.rpartition("/")[2] in _ANNOTATION_FILES and not _is_hidden(path)


def _list_folder(folder: Path) -> list[File]:
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed: {error.strerror}") from None

    files = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        relative = os.path.relpath(parent, folder)
        for name in filter(_is_image, names):
            path = os.path.join(parent, name)
            try:
                size = os.stat(path).st_size
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}; a broken link?") from None
            files.append(File(name if relative == "." else f"{relative}/{name}", size))
    return files


def _read_annotations(
    path: Path, location: Path, prefix: str, inside: dict[str, File]
) -> tuple[dict[str, Table], dict[str, bytes]]:
    """Every annotation file found, near the images or else `inside` the zip: parsed, and as bytes."""
    images = location.parent if location.is_file() else location / prefix
    base = path.parent if path.is_file() else path
    near = [images, images.parent, base, base.absolute().parent]
    tables, contents = {}, {}
    for stem in annotations.STEMS:
        if stem == annotations.LANDMARKS and IN_THE_WILD in (images.name, Path(prefix).name, location.stem):
            continue
        places = [
            folder / inner / f"{stem}{suffix}"
            for folder in near
            for inner in ANNOTATION_FOLDERS
            for suffix in (".txt", ".csv")
        ]
        found = next((place for place in places if place.is_file()), None)
        zipped = inside.get(f"{stem}.txt") or inside.get(f"{stem}.csv")
        if found is None and zipped is None:
            continue
        where = found or location / (zipped.path if zipped else "")
        try:
            contents[stem] = zip_reader.read_file(location, zipped) if zipped and not found else where.read_bytes()
        except OSError as error:
            raise UserError(f"{where}: cannot be read: {error.strerror or error}") from None
        tables[stem] = annotations.parse(stem, str(where), contents[stem])
    return tables, contents


def _records(names: Iterable[str], tables: dict[str, Table]) -> list[Record]:
    none = Table()
    attributes = tables.get(annotations.ATTRIBUTES, none)
    landmarks = tables.get(annotations.LANDMARKS, none)
    partitions = tables.get(annotations.PARTITION, none)
    points = annotations.landmark_names(landmarks.columns)
    in_order = sorted(_keys(names).items(), key=itemgetter(1))
    ordered, keys = [name for name, _ in in_order], [key for _, key in in_order]
    attribute_rows, landmark_rows = attributes.of(ordered), landmarks.of(ordered)
    columns = (
        keys,
        ordered,
        map(_PARTITIONS.get, partitions.of(ordered)),
        [attributes.columns if row else () for row in attribute_rows],
        attribute_rows,
        [points if row else () for row in landmark_rows],
        landmark_rows,
    )
    return list(map(Record._make, zip(*columns, strict=True)))


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Image name -> key: unique, without dots (WebDataset ends a key at the first one) and in plain ASCII.

    Names whose keys would collide, and keys too long for a tar header, get eight digits of the name's hash.
    """
    plain = {name: name.rsplit(".", 1)[0] for name in names}
    if _NOT_IN_A_KEY.search("".join(plain.values())):
        plain = {name: _NOT_IN_A_KEY.sub("_", stem) for name, stem in plain.items()}
    uses = Counter(plain.values())
    if len(uses) == len(plain) and max(map(len, uses), default=0) <= LONGEST_KEY:
        return plain
    keys = {}
    for name, key in plain.items():
        if uses[key] > 1 or len(key) > LONGEST_KEY:
            digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            key = f"{key[: LONGEST_KEY - 9]}-{digest}"
        keys[name] = key
    if len(set(keys.values())) < len(keys):
        twice, _ = Counter(keys.values()).most_common(1)[0]
        both = sorted(name for name, key in keys.items() if key == twice)
        raise UserError(f"{both[0]} and {both[1]} would both get the key {twice}; rename one")
    return keys
