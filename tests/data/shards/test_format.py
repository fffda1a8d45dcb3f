"""Finished shards: read by anyone, at random and in other processes, and damage is named."""

import errno
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from making import read_all

from pipeline.common.errors import UserError
from pipeline.data.shards.format import ShardError, load_manifest
from pipeline.data.shards.reader import ShardReader
from pipeline.data.shards.verifying import verify


def test_plain_webdataset_and_tar_read_them(source: Path, folder: Path) -> None:
    samples = read_all(folder)
    assert list(samples) == [f"{number:06d}" for number in range(1, 19)]
    for key, (image, metadata) in samples.items():
        assert image == (source / "img_align_celeba" / f"{key}.jpg").read_bytes()
        assert metadata == {
            "attributes": {"Male": 1, "Young": -1},
            "file": f"{key}.jpg",
            "height": 48,
            "landmarks": {"lefteye": [10, 14], "nose": [29, 33]},
            "width": 40,
        }
    manifest = load_manifest(folder)
    assert (manifest.kind, manifest.split, manifest.samples, manifest.rejected) == ("written", "train", 18, ())
    assert [(shard.file[6:12], shard.samples) for shard in manifest.shards] == [
        ("000000", 5), ("000001", 5), ("000002", 5), ("000003", 3)
    ]  # fmt: skip
    for shard in manifest.shards:
        content = (folder / shard.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
    assert json.loads((folder / "manifest.json").read_text())["content_hash"] == manifest.content_hash
    assert manifest.content_hash != load_manifest(folder.parent / "test").content_hash
    tar = folder / "shard-000000.tar"
    listed = subprocess.run(["tar", "tf", tar], check=True, capture_output=True, text=True)
    expected = [f"{number:06d}.{ending}" for number in range(1, 6) for ending in ("jpg", "json")]
    assert listed.stdout.splitlines() == expected and listed.stderr == ""
    assert tar.read_bytes() == tarfile_bytes(tar)


def tarfile_bytes(tar: Path) -> bytes:
    """The same members written by the standard library."""
    stream = io.BytesIO()
    with tarfile.open(tar) as old, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for member in old:
            plain = tarfile.TarInfo(member.name)
            plain.size = member.size
            new.addfile(plain, old.extractfile(member))
    return stream.getvalue()


def test_reader_agrees_with_webdataset(folder: Path) -> None:
    samples = read_all(folder)
    reader = pickle.loads(pickle.dumps(ShardReader(folder)))
    assert len(reader) == len(samples) == load_manifest(folder).samples
    order = list(range(len(reader)))
    random.Random(0).shuffle(order)
    for i in order:
        key, image = reader.read(i)
        assert (image, reader.metadata(i)) == samples[key]
        located = reader.locate(i)
        assert (located.key, located.extension, located.width, located.height) == (key, "jpg", 40, 48)
        assert (folder / located.shard).read_bytes()[located.offset :][: located.length] == image
    with pytest.raises(IndexError):
        reader.read(len(reader))
    with pytest.raises(IndexError):
        reader.locate(-1)


def read_in_child(reader: ShardReader) -> list[str]:
    return [reader.read(i)[0] for i in range(len(reader))]


def test_reader_in_forked_processes(folder: Path) -> None:
    reader = ShardReader(folder)
    keys = read_in_child(reader)  # opens the files before the fork
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(read_in_child, [reader, reader]) == [keys, keys]


def test_reader_holds_few_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.shards.reader.OPEN_SHARDS", 2)
    reader = ShardReader(folder)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for i in [0, 5, 10, 15, 0, 6, 11]:
        assert reader.read(i)[0] == f"{i + 1:06d}"
    assert len(reader._open) == 2
    if before:
        assert len(os.listdir("/proc/self/fd")) == before + 2
        del reader
        assert len(os.listdir("/proc/self/fd")) == before


def test_reader_names_what_a_file_system_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    reader = ShardReader(folder)
    reader.read(6)
    monkeypatch.setattr("os.pread", stale)
    for read in (reader.read, reader.metadata):
        with pytest.raises(ShardError, match="sample 000007: the shard cannot be read: Stale"):
            read(6)


def test_reader_names_shard_and_key_of_damage(folder: Path) -> None:
    located = ShardReader(folder).locate(6)
    tar = folder / located.shard
    content = bytearray(tar.read_bytes())
    content[located.offset + 30] ^= 4
    content[located.meta_offset + 3] ^= 4
    tar.write_bytes(content)
    reader = ShardReader(folder)
    for read in (reader.read, reader.metadata):
        with pytest.raises(ShardError, match=r"shard-000001\.tar: sample 000007: damaged"):
            read(6)
    content[located.offset - 500] ^= 4  # in the name, which only other readers need
    tar.write_bytes(content)
    with pytest.raises(ShardError, match=r"shard-000001\.tar: sample 000007: its tar header is damaged"):
        ShardReader(folder).read(6)
    first = ShardReader(folder).locate(5)
    tar.write_bytes(content[: first.offset - 512])  # between two samples
    with pytest.raises(ShardError, match=r"shard-000001\.tar: sample 000006: the tar ends"):
        ShardReader(folder).read(5)
    tar.write_bytes(content[: located.offset])
    with pytest.raises(ShardError, match=r"shard-000001\.tar: sample 000007: the tar ends"):
        ShardReader(folder).read(6)
    tar.unlink()
    with pytest.raises(ShardError, match=r"shard-000001\.tar: sample 000007: the shard cannot be read"):
        ShardReader(folder).read(6)
    shutil.copy(folder / "shard-000000.index.json", folder / "shard-000001.index.json")
    with pytest.raises(ShardError, match=r"shard-000001\.index\.json"):
        ShardReader(folder)


def test_bad_manifests(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"but in .*train; name that folder"):
        load_manifest(folder.parent)
    with pytest.raises(UserError, match=r"train is one split; name the folder that holds train/ and test/"):
        load_manifest(folder / "train")  # as where data.shards names one split
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    first = value["shards"][0]
    for change, message in [
        ({"schema": 99}, "schema 99"),
        ({"samples": 17}, "counts"),
        ({"content_hash": "0" * 64}, "content hash"),
        ({"shards": [{}]}, "shards.0.file"),
        ({"shards": [first, first]}, "listed twice"),
        ({"shards": [first | {"file": "../../x.tar"}]}, "shards.0.file"),
        ({"shards": [first | {"file": "/etc/x.tar"}]}, "shards.0.file"),
        ({"shards": [first | {"samples": -1}]}, "shards.0.samples"),
        ({"shards": [first | {"bytes": 10**30}]}, "shards.0.bytes"),
        ({"shards": [first | {"samples": "5"}]}, "shards.0.samples"),
        ({"kind": 3}, "kind"),
        ({"rejected": [{"file": 3, "reason": "none"}]}, "rejected.0.file"),
        ({"options": {"split": [[]]}}, "options.split"),
    ]:
        path.write_text(json.dumps(value | change))
        with pytest.raises(UserError, match=message) as caught:
            load_manifest(folder)
        assert "\n" not in str(caught.value)
    for text in ("{", "[" * 100_000, "[]", "\0"):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged, or not a manifest"):
            load_manifest(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a file"):
        load_manifest(folder)


BAD_INDEXES: dict[str, dict[str, object]] = {
    "samples": {"samples": 4},
    "key 000003 is in it twice": {"keys": ["000001", "000002", "000003", "000003", "000005"]},
    "offset": {"offset": [512, 1, 2, 3, 2**60]},
    "an offset": {"offset": [512, 512, 512, 512, 2**30]},
    "length": {"length": [-1, 1, 1, 1, 1]},
    "crc32": {"crc32": ["x", 1, 1, 1, 1]},
    "width": {"width": [0, 1, 1, 1, 1]},
    "columns": {"height": [40]},
    "extensions": {"extensions": ["../x", "jpg", "jpg", "jpg", "jpg"]},
    "it is of": {"shard": "shard-000001.tar"},
    "manifest": {"bytes": 2**30},
}


@pytest.mark.parametrize("wrong", BAD_INDEXES)
def test_an_index_that_contradicts_itself_is_refused(folder: Path, wrong: str) -> None:
    """Its SHA-256 is the manifest's: whoever made both may have made them by hand."""
    path, manifest = folder / "shard-000000.index.json", folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | BAD_INDEXES[wrong]))
    value = json.loads(manifest.read_bytes())
    value["shards"][0]["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(value))
    with pytest.raises(ShardError, match=rf"shard-000000\.index\.json: the index is damaged.*{wrong}") as caught:
        ShardReader(folder)
    assert "\n" not in str(caught.value)
    assert verify(folder, workers=1).problems


def test_a_fifo_in_place_of_a_tar(folder: Path) -> None:
    tar = folder / "shard-000000.tar"
    tar.unlink()
    os.mkfifo(tar)
    with pytest.raises(ShardError, match=r"shard-000000\.tar: sample 000001: the shard cannot be read"):
        ShardReader(folder).read(0)
    (problem,) = verify(folder, workers=1).problems
    assert problem.shard == tar.name and "not a file" in problem.message
