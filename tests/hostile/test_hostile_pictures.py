"""Files that are named as pictures are and hold something else, or more than they should."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from making import jpeg
from PIL import Image
from trying import FEW_AND_MANY, answered, answered_in_little_memory, chunk, cuts, flips, photograph, refused, tar_of

FORMS = {"JPEG": "x.jpg", "PNG": "x.png", "WEBP": "x.webp"}


def claiming(width: int, height: int, form: str) -> bytes:
    """A small picture whose header says that it is large."""
    data = bytearray(photograph(form))
    if form == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    elif form == "PNG":
        header = struct.pack(">II", width, height) + data[24:29]
        data[8:33] = chunk(b"IHDR", header)
    else:
        extended = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        data[12:12] = b"VP8X" + struct.pack("<I", 10) + extended
        data[4:8] = struct.pack("<I", len(data) - 8)
    return bytes(data)


def with_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG with one more part behind its header."""
    png = photograph("PNG")
    return png[:33] + chunk(kind, content) + png[33:]


def scans(count: int) -> bytes:
    """A progressive JPEG whose first scan comes `count` times."""
    data = jpeg(1, (4000, 4000), progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    return data[:first] + data[first:second] * count + data[first:]


def saved(form: str, mode: str = "RGB") -> Callable[[Path], object]:
    return lambda path: Image.new(mode, (64, 64)).save(path, form)


def written(data: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data.encode() if isinstance(data, str) else data)


def sparse(path: Path) -> None:
    path.write_bytes(photograph())
    os.truncate(path, 2**29)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a loop of links": lambda path: path.symlink_to(path.name),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
NO_PICTURES: dict[str, Callable[[Path], object]] = {
    "nothing": written(b""),
    "text": written("not a picture\n" * 100),
    "PostScript": written("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(%pipe%id) (w) file\n"),
    "PDF": saved("PDF"),
    "GIF": saved("GIF"),
    "BMP": saved("BMP"),
    "TIFF": saved("TIFF"),
    "ICO": saved("ICO"),
    "PPM": saved("PPM"),
    "JPEG 2000": written(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100)),
    "16 bits": saved("PNG", "I;16"),
    "a tar": written(tar_of({"x.jpg": photograph()})),
    "two bytes": written(b"\xff\xd8"),
    "text of gigabytes in a PNG": written(with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26), 9))),
    "a colour profile of gigabytes": written(with_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28), 9))),
    "a large sparse file": sparse,
    **{
        f"{form} of {side} pixels": written(claiming(side, side, form))
        for form in FORMS
        for side in (1, 8193, 16383 if form == "WEBP" else 65500)
    },
}
MAY_PASS = {"text of gigabytes in a PNG", "a colour profile of gigabytes"}
HOSTILE = NO_FILES | NO_PICTURES


def name_of(kind: str) -> str:
    return next((name for form, name in FORMS.items() if form in kind), "x.jpg")


@pytest.mark.parametrize("kind", HOSTILE)
def test_fuse_refuses_it(untrained: Path, good: Path, tmp_path: Path, kind: str) -> None:
    bad = tmp_path / name_of(kind)
    HOSTILE[kind](bad)
    try_it = answered if kind in MAY_PASS else refused
    try_it(tmp_path, "fuse", untrained, bad, good, "-o", tmp_path / "out" / "fused.png")
    try_it(tmp_path, "fuse", untrained, good, good, "--mask", bad, "-o", tmp_path / "fused.png")


@pytest.mark.parametrize(
    "kind", ["a named pipe", "PostScript", *(pytest.param(kind, marks=pytest.mark.faults) for kind in HOSTILE)]
)
def test_shard_and_features_refuse_it(source: Path, tmp_path: Path, kind: str) -> None:
    bad, out = source / name_of(kind), tmp_path / "out"
    HOSTILE[kind](bad)
    try_it = answered if kind in MAY_PASS else refused
    if kind != "a folder":  # which may have any name
        try_it(tmp_path, "shard", source, out, "--split", "0.3", "--workers", "1", works_in=out)
        assert not list(out.rglob("manifest.json")) or kind in MAY_PASS
    network = ("--weights", "random", "--arch", "vgg16")
    try_it(tmp_path, "features", bad, *network, "-o", tmp_path / "features.png")


@pytest.mark.parametrize("kind", [k for k in NO_PICTURES if "sparse" not in k])
@pytest.mark.faults
def test_it_is_not_indexed(tmp_path: Path, kind: str) -> None:
    bad = tmp_path / name_of(kind)
    HOSTILE[kind](bad)
    folder = tmp_path / "tars"
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar_of({"a.jpg": photograph(), f"b{bad.suffix}": bad.read_bytes()}))
    result = answered(tmp_path, "shard", "--index-only", folder, "--workers", "1", works_in=folder)
    assert result.code == 2 or kind in MAY_PASS
    assert (folder / "manifest.json").exists() == (result.code == 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_damage(untrained: Path, good: Path, tmp_path: Path, form: str, count: int) -> None:
    """A flipped bit may still give a picture; half of one never does."""
    bad, out, whole = tmp_path / FORMS[form], tmp_path / "fused.png", photograph(form)
    for data in cuts(whole, max(4, count // 10)):
        bad.write_bytes(data)
        refused(tmp_path, "fuse", untrained, bad, good, "-o", out)
    for data in (*flips(whole, count), *flips(whole, count, last=64)):
        bad.write_bytes(data)
        answered(tmp_path, "fuse", untrained, bad, good, "-o", out)
        out.unlink(missing_ok=True)


@pytest.mark.faults
@pytest.mark.parametrize("what", ["the largest", "thousands of scans", "claims"])
def test_memory_and_time(untrained: Path, good: Path, tmp_path: Path, what: str) -> None:
    bad = tmp_path / "x.jpg"
    if what == "the largest":
        bad.write_bytes(jpeg(1, (8192, 8192), progressive=True))
    else:
        bad.write_bytes(scans(3000) if what == "thousands of scans" else claiming(65500, 65500, "JPEG"))
    code = answered_in_little_memory(tmp_path, "fuse", untrained, bad, good, "-o", tmp_path / "fused.png").code
    assert code == (0 if what == "the largest" else 2)
