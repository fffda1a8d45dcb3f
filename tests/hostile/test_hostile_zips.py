"""Zips: damaged by a bit, of the wrong sizes and names, and larger inside than outside. No image is lost in silence."""

import json
import struct
import zipfile
from pathlib import Path

import pytest
from making import jpeg
from trying import FEW_AND_MANY, answered, answered_in_little_memory, cuts, flips, refused

from pipeline.data.shards.reader import ShardReader

IMAGES = {f"{number:03d}.jpg": jpeg(number) for number in range(4)}
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
OPTIONS = ("--split", "0.3", "--workers", "1")


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path.read_bytes()


def patched(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """The second header of a kind with other bytes at one place."""
    start = data.index(signature, data.index(signature) + 1) + offset
    return data[:start] + value + data[start + len(value) :]


def odd_headers(whole: bytes) -> dict[str, bytes]:
    word, double = struct.Struct("<H"), struct.Struct("<I")
    return {
        "version 99 in the list": patched(whole, CENTRAL, 6, word.pack(99)),
        "version 99 in front of the file": patched(whole, LOCAL, 4, word.pack(99)),
        "encrypted": patched(whole, CENTRAL, 8, word.pack(1)),
        "encrypted in front of the file": patched(whole, LOCAL, 6, word.pack(1)),
        "patched data": patched(whole, CENTRAL, 8, word.pack(0x20)),
        "unknown compression": patched(whole, CENTRAL, 10, word.pack(95)),
        "LZMA that is none": patched(whole, CENTRAL, 10, word.pack(14)),
        "deflated that is stored": patched(whole, CENTRAL, 10, word.pack(8)),
        "another CRC32": patched(whole, CENTRAL, 16, double.pack(1)),
        "nothing in it": patched(whole, CENTRAL, 20, double.pack(0)),
        "shorter than it is": patched(whole, CENTRAL, 24, double.pack(10)),
        "gigabytes in it": patched(whole, CENTRAL, 24, double.pack(2**32 - 2)),
        "a size in an extra field that is not there": patched(whole, CENTRAL, 24, double.pack(2**32 - 1)),
        "behind the end": patched(whole, CENTRAL, 42, double.pack(2**31)),
        "a long name": patched(whole, CENTRAL, 28, word.pack(60000)),
        "two files of one name": whole.replace(b"002.jpg", b"001.jpg"),
        "other names in the list": whole[: whole.index(CENTRAL)]
        + whole[whole.index(CENTRAL) :].replace(b"001", b"007"),
        "a list of half the files": patched(whole, CENTRAL, 0, b"XXXX"),
        "a comment that holds the next entry": patched(whole, CENTRAL, 32, word.pack(53)),
        "an extra field that holds the next entry": patched(whole, CENTRAL, 30, word.pack(53)),
        "a NUL in a name": whole.replace(b"002.jpg", b"0\x002.jpg"),
        "a name that is no text": whole[: whole.index(CENTRAL)]
        + patched(whole, CENTRAL, 8, word.pack(0x800))[whole.index(CENTRAL) :].replace(b"001", b"\xff\xfe1"),
    }


KINDS = list(odd_headers(b"".join(2 * [LOCAL, CENTRAL, END])))


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_header(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(odd_headers(zipped(path, IMAGES))[kind])
    assert_all_or_refused(tmp_path, path)


@pytest.mark.parametrize("count", FEW_AND_MANY)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_loses_no_image(tmp_path: Path, method: int, count: int) -> None:
    path = tmp_path / "a.zip"
    whole = zipped(path, IMAGES, method)
    listed = whole.index(CENTRAL)
    spoilt = [*flips(whole, count), *flips(whole, 2 * count, first=listed), *cuts(whole, max(3, count // 20))]
    for data in spoilt:
        path.write_bytes(data)
        assert_all_or_refused(tmp_path, path)


def assert_all_or_refused(root: Path, path: Path) -> None:
    """Every image is in the shards, or there are none."""
    out = root / "out"
    if answered(root, "shard", path, out, *OPTIONS, works_in=out).code == 0:
        readers = [ShardReader(out / split) for split in ("train", "test")]
        read = [reader.image(i) for reader in readers for i in range(len(reader))]
        assert sorted(read) == sorted(IMAGES.values())
    else:
        assert not list(out.rglob("manifest.json"))
    for each in sorted(out.rglob("*"), reverse=True):
        each.rmdir() if each.is_dir() else each.unlink()


NAMES = (
    "../outside.jpg",
    "/etc/outside.jpg",
    "a/../../outside.jpg",
    "a\nb.jpg",
    "C:\\x.jpg",
    "x" * 300 + ".jpg",
    ".jpg",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out(tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "in" / "a.zip", tmp_path / "in" / "out"
    path.parent.mkdir()
    zipped(path, IMAGES | {name: jpeg(9)})
    answered(tmp_path, "shard", path, out, *OPTIONS, works_in=out)
    assert [each.name for each in tmp_path.iterdir()] == ["in"]


def test_an_annotation_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    zipped(path, IMAGES | {"list_attr_celeba.txt": bytes(2**26 + 1)}, zipfile.ZIP_DEFLATED)
    refused(tmp_path, "shard", path, tmp_path / "out", *OPTIONS)


@pytest.mark.faults
@pytest.mark.parametrize("size", [2**28, 2**28 + 1, 3 * 2**30])
def test_a_zip_that_grows(tmp_path: Path, size: int) -> None:
    """A megabyte of zeros in the place of an image is refused, whatever it grows to."""
    path, out = tmp_path / "a.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in IMAGES.items():
            archive.writestr(name, data)
        with archive.open("zeros.jpg", "w", force_zip64=True) as member:
            for _ in range(0, size, 2**20):
                member.write(bytes(2**20))
    limits = ("--split", "0.3", "--workers", "1", "--max-rejected", "1", "--json")
    result = answered_in_little_memory(tmp_path, "shard", path, out, *limits)
    assert result.code == 0 and "zeros.jpg" in json.dumps(json.loads(result.out))
