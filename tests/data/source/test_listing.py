"""Zips of images: what is listed and read, and what a damaged or hostile one leads to."""

import io
import multiprocessing
import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.data.source import listing
from pipeline.data.source.listing import File, FileReader

NAMES = ("faces/000001.jpg", "faces/000002.jpg", "faces/gr\xfcn.jpg", "faces/\u732b.jpg", "faces/notes.txt")


def content(name: str) -> bytes:
    return name.encode() * 50


def packed(names: tuple[str, ...] = NAMES, method: int = zipfile.ZIP_STORED, extra: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        made.mkdir("folder.jpg")
        for name in names:
            info = zipfile.ZipInfo(name)
            info.filename, info.compress_type, info.extra = name, method, extra
            made.writestr(info, content(name))
    return stream.getvalue()


def wanted(path: str) -> bool:
    return ".jpg" in path


USUAL = {
    "stored": packed(),
    "deflated": packed(method=zipfile.ZIP_DEFLATED),
    "long extra fields": packed(extra=b"\x99\x99\xf0\x00" + bytes(0xF0)),
    "behind a script": b"#!/bin/sh\n" + packed(),
}


@pytest.mark.parametrize("kind", USUAL)
def test_usual_zips(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "faces.zip"
    path.write_bytes(USUAL[kind])
    files, reader = FileReader(path).files(wanted), FileReader(path)
    assert [file.path for file in files] == list(NAMES[:4])
    assert [reader.read(file) for file in files] == [content(name) for name in NAMES[:4]]
    for name in ("/faces/1.jpg", "./faces/1.jpg", ".//faces/1.jpg"):
        path.write_bytes(packed((name,)))
        (file,) = FileReader(path).files(wanted)
        assert file.path == "faces/1.jpg" and FileReader(path).read(file) == content(name)


def read_all(reader: FileReader, files: list[File], times: int) -> bool:
    return all(reader.read(file) == content(file.member) for file in files * times)


def test_forked_processes_share_no_position(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    path.write_bytes(packed(method=zipfile.ZIP_DEFLATED))
    files, reader = FileReader(path).files(wanted), FileReader(path)
    assert read_all(reader, files, 1)  # opened before the fork
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=lambda: os._exit(not read_all(reader, files, 300))) for _ in range(2)]
    for child in children:
        child.start()
    assert read_all(reader, files, 300)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]


def test_a_flipped_bit_in_the_list_loses_no_image(tmp_path: Path) -> None:
    path, whole = tmp_path / "faces.zip", packed()
    start = whole.index(b"PK\x01\x02")  # the list of files stands at the end
    place = whole.index(b"000002.jpg", start) + 5
    path.write_bytes(whole[:place] + b"1" + whole[place + 1 :])
    with pytest.raises(UserError, match=r"faces\.zip: faces/000001\.jpg is in it twice"):
        FileReader(path).files(wanted)
    path.write_bytes(whole[:place] + b"3" + whole[place + 1 :])
    with pytest.raises(OSError, match=r"in directory 'faces/000003\.jpg' and header b'faces/000002\.jpg' differ"):
        FileReader(path).read(FileReader(path).files(wanted)[1])


@pytest.mark.parametrize("claimed", [listing.MAX_FILE_BYTES + 1, 1000])
def test_a_file_that_decompresses_to_much_more(tmp_path: Path, claimed: int) -> None:
    """Refused by the size that the list tells; where the list lies, no more than that is decompressed."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made, made.open("a.jpg", "w") as stream:
        for _ in range(64):
            stream.write(bytes(2**20))
    whole = path.read_bytes()
    size = whole.index(b"PK\x01\x02") + 24
    path.write_bytes(whole[:size] + claimed.to_bytes(4, "little") + whole[size + 4 :])
    (file,) = FileReader(path).files(wanted)
    tracemalloc.start()
    with pytest.raises(OSError, match=r"bytes, more than|Bad CRC-32"):
        FileReader(path).read(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_damaged_zips(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    whole = packed()
    start = whole.index(b"PK\x01\x02")
    version = start + 6
    for made in (
        whole[:start] + b"XX" + whole[start + 2 :],
        whole[:-30],
        b"",
        whole[:version] + b"\x63" + whole[version + 1 :],
    ):
        path.write_bytes(made)
        with pytest.raises(UserError, match="damaged zip"):
            FileReader(path).files(wanted)
    flags = whole.index(b"PK\x01\x02", start + 4) + 8  # of the first file behind the folder
    path.write_bytes(whole[:flags] + b"\x01" + whole[flags + 1 :])
    with pytest.raises(UserError, match="encrypted"):
        FileReader(path).files(lambda name: True)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: not a file"):
        FileReader(tmp_path).files(wanted)
