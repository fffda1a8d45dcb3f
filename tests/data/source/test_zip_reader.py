"""Zips are listed as `zipfile` lists them, and quickly where nothing is odd about them."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.data.source import zip_reader as archive

NAMES = ("faces/000001.jpg", "faces/000002.jpg", "faces/gr\xfcn.jpg", "faces/\u732b.jpg", "faces/notes.txt")


def content(name: str) -> bytes:
    return name.encode() * 50


def packed(method: int = zipfile.ZIP_STORED, extra: bytes = b"", comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        made.mkdir("folder.jpg")
        for name in NAMES:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.extra = method, extra
            made.writestr(info, content(name))
        made.comment = comment
    return stream.getvalue()


def wanted(path: str) -> bool:
    return ".jpg" in path


def listed_quickly(path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether `zipfile` was not needed; the files are read and compared either way."""
    used = []
    whole = zipfile.ZipFile
    with monkeypatch.context() as patch:
        patch.setattr(archive.zipfile, "ZipFile", lambda file: used.append(file) or whole(file))
        files = archive.list_files(path, wanted)
    assert [file.path for file in files] == list(NAMES[:4])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert [archive.read(descriptor, file) for file in files] == [content(name) for name in NAMES[:4]]
    finally:
        os.close(descriptor)
    return not used


def test_usual_zips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "faces.zip"
    long_extra = b"\x99\x99\xf0\x00" + bytes(0xF0)
    for made in (packed(), packed(zipfile.ZIP_DEFLATED), packed(comment=b"a comment"), packed(extra=long_extra)):
        path.write_bytes(made)
        assert listed_quickly(path, monkeypatch)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)  # as CelebA's with 200,000 images
    path.write_bytes(packed())
    assert b"PK\x06\x06" in path.read_bytes() and listed_quickly(path, monkeypatch)


def test_odd_zips_are_left_to_zipfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "faces.zip"
    path.write_bytes(b"#!/bin/sh\n" + packed())  # offsets count from behind it
    assert not listed_quickly(path, monkeypatch)


def test_paths_from_a_root(tmp_path: Path) -> None:
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name in ("/faces/1.jpg", "./faces/2.jpg", ".//faces/3.jpg", "faces/4.jpg"):
            info = zipfile.ZipInfo(name)
            info.filename = name
            made.writestr(info, content(name))
    files = archive.list_files(path, wanted)
    assert [file.path for file in files] == [f"faces/{number}.jpg" for number in (1, 2, 3, 4)]
    assert archive.read_file(path, files[1]) == content("./faces/2.jpg")


def test_damaged_zips(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    whole = packed()
    start = whole.index(b"PK\x01\x02")
    for made in (whole[:start] + b"XX" + whole[start + 2 :], whole[:-30], b""):
        path.write_bytes(made)
        with pytest.raises(UserError, match="damaged zip"):
            archive.list_files(path, wanted)
    flags = whole.index(b"PK\x01\x02", start + 4) + 8  # of the first file behind the folder
    path.write_bytes(whole[:flags] + b"\x01" + whole[flags + 1 :])
    with pytest.raises(UserError, match="encrypted"):
        archive.list_files(path, lambda name: True)
