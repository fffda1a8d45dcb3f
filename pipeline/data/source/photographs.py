"""A source of face images: CelebA as distributed (zip or folder), or any folder or zip of JPEG, PNG and WebP files."""

import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.data.source import annotations
from pipeline.data.source.annotations import Table
from pipeline.data.source.listing import SUFFIXES, File, FileReader, is_hidden, is_image

ARCHIVE = "img_align_celeba.zip"
FOLDER = "img_align_celeba"
IN_THE_WILD = "img_celeba"
"""CelebA's pictures before they were aligned: the landmarks of the aligned ones are not theirs."""
# Where CelebA's own download keeps its annotation files, beside Img/.
ANNOTATION_FOLDERS = ("", "Anno", "Eval")
# Key, dot, extension must fit the 100 bytes of a tar header's name.
LONGEST_KEY = 80

_KINDS_SHOWN = 5

_ANNOTATION_FILES = frozenset(f"{stem}{suffix}" for stem in annotations.STEMS for suffix in (".txt", ".csv"))
_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Record:
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


@dataclass(frozen=True)
class Source:
    """The images of a folder or a zip. Picklable; files are opened in the process that reads them."""

    reader: FileReader
    files: dict[str, File]
    records: list[Record]
    fingerprint: str
    ignored: dict[str, int]
    """Files that are neither images nor annotations nor hidden: ending -> their number."""

    def read(self, name: str) -> bytes:
        """The bytes of one image, by its record's name. Raises OSError as `FileReader.read`."""
        return self.reader.read(self.files[name])


def open_source(path: Path) -> Source:
    """List the images of `path` and read the annotations near it; no image is opened.

    Args:
        path: a zip, a folder with `img_align_celeba.zip` or `img_align_celeba/` in it, or any folder of images.

    Raises:
        UserError: nothing there, no images, a damaged zip, or a malformed annotation file.
    """
    reader = FileReader(_locate(path))
    found = reader.files(_is_read)
    pictures = [file for file in found if is_image(file.path)]
    inside = {Path(file.path).name: file for file in reversed(found) if _is_annotation(file.path)}
    ignored = reader.ignored(_is_read)
    if not pictures:
        instead = f", but {listed(ignored)}" if ignored else ""
        raise UserError(f"{path}: no {', '.join(SUFFIXES)} images and no {ARCHIVE} in it{instead}")
    # One common folder says nothing about an image: so a zip, its folder and Kaggle's nested folder name images alike.
    parents = {file.path.rpartition("/")[0] for file in pictures}
    prefix = os.path.commonpath(parents) if "" not in parents else ""
    by_name = {file.path.removeprefix(prefix).lstrip("/"): file for file in pictures}
    tables, contents = _read_annotations(path, reader, prefix, inside)
    lines = [f"{name}\0{file.size}\0{file.crc32}\n" for name, file in sorted(by_name.items())]
    lines += [f"{stem}\0{hashlib.sha256(contents[stem]).hexdigest()}\n" for stem in sorted(contents)]
    fingerprint = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return Source(reader, by_name, _records(by_name, tables), fingerprint, ignored)


def listed(ignored: dict[str, int]) -> str:
    """As `9 .txt, 3 .gif`."""
    kinds = [f"{number} {ending}" for ending, number in ignored.items()]
    return ", ".join(kinds[:_KINDS_SHOWN] + ["..."] * (len(kinds) > _KINDS_SHOWN))


def _is_read(path: str) -> bool:
    return is_image(path) or _is_annotation(path)


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


def _is_annotation(path: str) -> bool:
    return path.rpartition("/")[2] in _ANNOTATION_FILES and not is_hidden(path)


def _read_annotations(
    path: Path, reader: FileReader, prefix: str, inside: dict[str, File]
) -> tuple[dict[str, Table], dict[str, bytes]]:
    """Every annotation file found, near the images or else `inside` the zip: parsed, and as bytes."""
    location = reader.location
    images = location.parent if location.is_file() else location / prefix
    base = path.parent if path.is_file() else path
    near = [images, images.parent, base, base.absolute().parent]
    tables, contents = {}, {}
    for stem in annotations.STEMS:
        if stem == annotations.LANDMARKS and IN_THE_WILD in (images.name, Path(prefix).name, location.stem):
            continue
        names = (f"{stem}.txt", f"{stem}.csv")
        places = (folder / inner / name for folder in near for inner in ANNOTATION_FOLDERS for name in names)
        where = next(filter(Path.is_file, places), None)
        zipped = inside.get(names[0]) or inside.get(names[1])
        try:
            if where is not None:
                contents[stem] = files.read_bytes(where, annotations.MOST_BYTES)
            elif zipped is not None:
                where = location / zipped.path
                if zipped.size > annotations.MOST_BYTES:
                    raise OSError(f"more than {annotations.MOST_BYTES:,} bytes")
                contents[stem] = reader.read(zipped)
            else:
                continue
        except OSError as error:
            raise UserError(f"{where}: cannot be read: {error.strerror or error}") from None
        tables[stem] = annotations.parse(stem, str(where), contents[stem])
    return tables, contents


def _records(names: Iterable[str], tables: dict[str, Table]) -> list[Record]:
    """A record for each image, in the order of their keys."""
    attributes, landmarks, partitions = (
        tables.get(stem, Table()) for stem in (annotations.ATTRIBUTES, annotations.LANDMARKS, annotations.PARTITION)
    )
    points = annotations.landmark_names(landmarks.columns)
    keys, in_order = zip(*sorted((key, name) for name, key in _keys(names).items()), strict=True)
    rows = zip(keys, in_order, attributes.of(in_order), landmarks.of(in_order), partitions.of(in_order), strict=True)
    return [
        Record(
            key, name, int(partition) if partition else None,
            attributes.columns if values else (), values, points if places else (), places,
        )
        for key, name, values, places, partition in rows
    ]  # fmt: skip


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Image name -> key: unique, without dots (WebDataset ends a key at the first one) and in plain ASCII.

    Names whose keys would collide, and keys too long for a tar header, get eight digits of the name's hash.
    """
    keys = {name: _NOT_IN_A_KEY.sub("_", name.rsplit(".", 1)[0]) for name in names}
    uses = Counter(keys.values())
    for name, key in keys.items():
        if uses[key] > 1 or len(key) > LONGEST_KEY:
            digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            keys[name] = f"{key[: LONGEST_KEY - 9]}-{digest}"
    if len(set(keys.values())) < len(keys):
        twice, _ = Counter(keys.values()).most_common(1)[0]
        both = sorted(name for name, key in keys.items() if key == twice)
        raise UserError(f"{both[0]} and {both[1]} would both get the key {twice}; rename one")
    return keys
