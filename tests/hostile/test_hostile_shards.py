"""Shards: manifests and indexes whose hashes agree but whose numbers do not, and tars that others made."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from running import tiny_arguments
from trying import FEW_AND_MANY, answered, answered_in_little_memory, changes, cuts, flips, many, photograph, tar_of
from trying import refused as refused_by

from pipeline.common.errors import UserError
from pipeline.config.schema import DataConfig
from pipeline.data.loading.order import Order
from pipeline.data.loading.streaming import StreamedFaces
from pipeline.data.shards.format import MAX_MANIFEST_BYTES, Manifest, ShardEntry, parse_json
from pipeline.data.shards.reader import ShardReader


@pytest.fixture
def shards(whole_shards: Path, tmp_path: Path) -> Path:
    """A copy of one split."""
    return Path(shutil.copytree(whole_shards / "test", tmp_path / "in" / "test"))


def read_or_refuse(folder: Path) -> None:
    """Every reader gives what there is, or a UserError."""
    try:
        reader = ShardReader(folder)
    except UserError:
        return
    for i in range(len(reader)):
        try:
            reader.image(i)
            reader.metadata(i)
        except UserError:
            continue


def try_every_reader(shards: Path) -> None:
    root = shards.parent.parent
    copied = root / "copied"
    read_or_refuse(shards)
    answered(root, "stage", shards, copied, "--workers", "1", works_in=copied)
    shutil.rmtree(copied, ignore_errors=True)


def as_manifest(shards: Path, content: dict[str, Any]) -> dict[str, Any]:
    """With the counts and the hash that belong to it, where it is a manifest otherwise."""
    try:
        entries = content["shards"]
        lines = "".join(f"{each['file']} {each['sha256']}\n" for each in entries)
        samples = sum(each["samples"] for each in entries)
    except (KeyError, TypeError):
        return content
    return content | {"samples": samples, "content_hash": hashlib.sha256(lines.encode(errors="replace")).hexdigest()}


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_manifests(shards: Path, count: int) -> None:
    path = shards / "manifest.json"
    whole = json.loads(path.read_bytes())

    def try_one(changed: Any) -> None:
        path.write_text(json.dumps(as_manifest(shards, changed) if isinstance(changed, dict) else changed))
        try_every_reader(shards)

    many(changes(whole), 3 * count, try_one)


def write_index(shards: Path, content: str) -> None:
    """In the place of the first index; the manifest says so."""
    manifest = json.loads((shards / "manifest.json").read_bytes())
    entry = manifest["shards"][0]
    path = shards / entry["file"].replace(".tar", ".index.json")
    path.write_text(content)
    entry["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (shards / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_indexes(shards: Path, count: int) -> None:
    whole = json.loads(next(iter(sorted(shards.glob("*.index.json")))).read_bytes())

    def try_one(changed: Any) -> None:
        write_index(shards, json.dumps(changed))
        try_every_reader(shards)

    many(changes(whole), 3 * count, try_one)


TEXTS = {
    "a thousand levels": "[" * 1000 + "]" * 1000,
    "levels in an object": '{"a":' * 5000 + "1" + "}" * 5000,
    "digits": '{"schema": ' + "9" * 5000 + "}",
    "half a character": '{"schema": 1, "shard": "\\ud800"}',
    "not UTF-8": "\udcff",
    "nothing": "",
    "NaN": '{"schema": NaN}',
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts(shards: Path, kind: str) -> None:
    manifest = (shards / "manifest.json").read_bytes()
    with pytest.raises(UserError):
        write_text_and_read(shards / "manifest.json", TEXTS[kind])
    (shards / "manifest.json").write_bytes(manifest)
    write_index(shards, TEXTS[kind].encode("utf-8", "replace").decode())
    with pytest.raises(UserError):
        ShardReader(shards)
    shutil.rmtree(shards)
    refused_by(shards.parent, "stage", shards, shards.parent / "copied")


def write_text_and_read(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    ShardReader(path.parent)


def test_a_key_twice(shards: Path) -> None:
    """A name of the index, and the name of a sample."""
    index = sorted(shards.glob("*.index.json"))[0].read_text()
    for changed in (index.replace("{", '{"samples":4,', 1), index.replace("012", "011").replace("013", "011")):
        write_index(shards, changed)
        with pytest.raises(UserError, match="twice"):
            ShardReader(shards)


def header(name: str, length: int = 0, kind: bytes = tarfile.REGTYPE, **pax: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.pax_headers = length, kind, pax
    return member.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def raw(size: bytes) -> bytes:
    """A header with any size, and the checksum that belongs to it."""
    block = bytearray(header("a.jpg"))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


IMAGE = photograph()
PADDED = IMAGE + bytes(-len(IMAGE) % 512)
END = bytes(1024)
TARS: dict[str, bytes] = {
    "no tar": b"x" * 10_000,
    "an extended size of 10^20": header("a.jpg", len(IMAGE), size="1" + "0" * 20) + PADDED + END,
    "an extended size that goes back": header("a.jpg", len(IMAGE), size="-1536") + PADDED + END,
    "an extended size of gigabytes": header("a.jpg", len(IMAGE), size=str(2**33)) + PADDED + END,
    "an extended name with a NUL": header("a.jpg", len(IMAGE), path="a\0b.jpg") + PADDED + END,
    "a negative size": raw(b"\xff" * 11 + b"\x00") + PADDED + END,
    "a size of bytes that are all set": raw(b"\x80" + b"\x7f" * 11) + PADDED + END,
    "a size that is no number": raw(b"abcdefghijk\0") + PADDED + END,
    "a name of gigabytes": header("a.jpg", 2**33 - 1, tarfile.GNUTYPE_LONGNAME) + END,
    "an extension of gigabytes": header("a.jpg", 2**33 - 1, tarfile.XHDTYPE) + END,
    "a sparse file": header("a.jpg", 512, tarfile.GNUTYPE_SPARSE) + bytes(512) + END,
    "a link": header("a.jpg", 0, tarfile.SYMTYPE) + END,
    "a device": header("a.jpg", 0, tarfile.CHRTYPE) + END,
    "a pipe": header("a.jpg", 0, tarfile.FIFOTYPE) + END,
    "no sample": header("README", 0) + END,
    "two of one name": tar_of({"a.jpg": IMAGE})[: 512 + len(PADDED)] * 2 + END,
    "two images in a sample": tar_of({"a.jpg": IMAGE, "a.png": IMAGE}),
    "a line break in a name": tar_of({"a\nb.jpg": b"none"}),
    "PostScript": tar_of({"a.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n" * 50}),
    "no end": tar_of({"a.jpg": IMAGE})[: 512 + len(PADDED)],
}
STREAMS_REFUSE = set(TARS) - {"two images in a sample", "an extended name with a NUL"}


@pytest.mark.parametrize("kind", TARS)
def test_tars_of_others(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.tar").write_bytes(TARS[kind])
    answered(tmp_path, "shard", "--index-only", folder, "--workers", "1", works_in=folder)
    assert not list(folder.glob(".*"))
    with pytest.raises(UserError) if kind in STREAMS_REFUSE else nullcontext():
        first_image(folder / "a.tar")


def first_image(*tars: Path) -> None:
    """As training reads a stream."""
    faces = StreamedFaces("::".join(map(str, tars)), DataConfig(image_size=32, workers=0), seed=0)
    faces.calibration(Order(0, 4, 2, 1, 0), 2)


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_damaged_tars(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    whole = tar_of({f"{name}.{end}": data for name in "ab" for end, data in (("jpg", IMAGE), ("json", b"{}"))})
    for data in (*flips(whole, count), *flips(whole, count, last=512), *cuts(whole, max(3, count // 20))):
        for each in folder.iterdir():
            each.unlink()
        (folder / "a.tar").write_bytes(data)
        answered(tmp_path, "shard", "--index-only", folder, "--workers", "1", works_in=folder)
        with suppress(UserError):
            first_image(folder / "a.tar")


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a loop of links": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["manifest.json", "shard-000000.index.json", "shard-000000.tar"])
def test_what_is_no_file(shards: Path, name: str, kind: str) -> None:
    (shards / name).unlink()
    NO_FILES[kind](shards / name)
    root = shards.parent
    refused_by(root, "stage", shards, root / "copied", "--workers", "1", works_in=root / "copied")
    if name.endswith(".tar"):
        read_or_refuse(shards)
        refused_by(root, "shard", "--index-only", shards)
        with pytest.raises(UserError):
            first_image(shards / name)


@pytest.mark.faults
@pytest.mark.parametrize("command", ["pretrain", "bench"])
def test_training_reads_no_shards_that_do_not_hold(shards: Path, command: str) -> None:
    root = shards.parent
    (root / "train").mkdir()
    (root / "train" / "manifest.json").write_text('{"schema": 1}')
    arguments = tiny_arguments(root / "run", root)
    before = ("bench", "loader") if command == "bench" else (command,)
    refused_by(root, *before, *arguments, works_in=root / "run")


WIDE = {
    "empty lists": '{"schema": 1, "shards": [' + "[]," * (MAX_MANIFEST_BYTES // 3 - 20) + "[]]}",
    "numbers": '{"schema": 1, "rejected": [' + "1," * (MAX_MANIFEST_BYTES // 2 - 30) + "1]}",
    "objects": "[" + "{}," * (MAX_MANIFEST_BYTES // 3 - 5) + "{}]",
    "spaces": " " * (MAX_MANIFEST_BYTES + 1),
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", WIDE)
def test_memory_and_time(shards: Path, kind: str) -> None:
    (shards / "manifest.json").write_text(WIDE[kind])
    root = shards.parent
    assert answered_in_little_memory(root, "stage", shards, root / "copied").code == 2
    assert answered_in_little_memory(root, "verify", shards).code == 2


def test_what_is_spoilt_above_is_whole(shards: Path) -> None:
    manifest = parse_json(Manifest, (shards / "manifest.json").read_bytes())
    assert all(isinstance(shard, ShardEntry) for shard in manifest.shards)
    assert len(ShardReader(shards)) == manifest.samples == 4
    with tarfile.open(fileobj=io.BytesIO(tar_of({"a.jpg": IMAGE}))) as tar:
        assert tar.getnames() == ["a.jpg"]
