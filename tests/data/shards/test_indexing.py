"""Tars that others wrote: indexed where they are whole, refused where they are not."""

import json
from pathlib import Path

import pytest
import webdataset
from making import jpeg, member_offsets
from running import latentfuse

from pipeline.common.errors import UserError
from pipeline.data.shards.format import load_manifest
from pipeline.data.shards.indexing import index_tars
from pipeline.data.shards.reader import ShardReader
from pipeline.data.shards.verifying import verify


def foreign_tars(folder: Path, shards: int = 2, samples: int = 4) -> None:
    """Tars as webdataset's own writer makes them, with members that we do not use."""
    folder.mkdir()
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"part-{shard}.tar")) as writer:
            for number in range(samples):
                sample = {"__key__": f"some/{shard}{number}", "cls": b"3", "jpg": jpeg(number)}
                writer.write(sample | ({"json": {"attributes": {"Male": number}}} if number else {}))


def test_index_of_foreign_tars(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    foreign_tars(folder)
    with pytest.raises(UserError, match="--index-only"):
        load_manifest(folder)
    before = [path.read_bytes() for path in sorted(folder.glob("*.tar"))]
    summary = index_tars(folder, workers=2)
    assert (summary.samples, len(summary.shards)) == (8, 2)
    assert [path.read_bytes() for path in sorted(folder.glob("*.tar"))] == before
    reader = ShardReader(folder)
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    for i, sample in enumerate(webdataset.WebDataset(tars, shardshuffle=False)):
        assert reader.read(i) == (sample["__key__"], sample["jpg"])
        assert reader.metadata(i) == json.loads(sample.get("json", b"{}"))
    assert not verify(folder, workers=1).problems
    tar = folder / "part-1.tar"
    content = bytearray(tar.read_bytes())
    located = reader.locate(5)
    content[located.offset + 50] ^= 1
    tar.write_bytes(content)
    (problem,) = verify(folder, workers=1).problems
    assert (problem.shard, problem.key) == ("part-1.tar", "some/11")
    content[located.offset + 50] ^= 1
    content[member_offsets(folder / "part-0.tar")[0].offset_data] ^= 1  # a member that is not in the index
    tar.write_bytes(content)
    (problem,) = verify(folder, workers=1).problems
    assert (problem.shard, problem.key) == ("part-1.tar", None) and "SHA-256" in problem.message


def test_damaged_foreign_tars_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`shard` wrote these"):
        index_tars(folder)
    theirs = tmp_path / "theirs"
    foreign_tars(theirs, shards=1)
    tar = theirs / "part-0.tar"
    whole, members = tar.read_bytes(), member_offsets(tar)  # cls, jpg; then three times cls, jpg, json
    header = bytearray(whole)
    header[members[5].offset + 5] ^= 1
    for content in (whole[: members[5].offset], whole[: members[5].offset_data + 1], bytes(header), b"text"):
        tar.write_bytes(content)
        with pytest.raises(UserError, match=r"part-0\.tar"):
            index_tars(theirs, workers=1)
    with webdataset.TarWriter(str(tar)) as writer:
        for key in ("a", "b", "a"):
            writer.write({"__key__": key, "jpg": jpeg(1)})
    with pytest.raises(UserError, match=r"part-0\.tar: cannot be indexed: key a is in it twice"):
        index_tars(theirs, workers=1)
    with webdataset.TarWriter(str(tar)) as writer:
        writer.write({"__key__": "a", "webp": jpeg(1, form="WEBP")})
        writer.write({"__key__": "b", "txt": "no image"})
    with pytest.raises(UserError, match=r"part-0\.tar/b"):
        index_tars(theirs, workers=1)
    assert index_tars(theirs, workers=1, max_rejected=1).samples == 1
    with webdataset.TarWriter(str(tar)) as writer:
        writer.write({"__key__": "capitals", "JPG": jpeg(1), "JSON": b'{"attributes": {"Male": 1}}'})
    index_tars(theirs)
    reader = ShardReader(theirs)
    assert reader.read(0) == ("capitals", jpeg(1)) and reader.metadata(0) == {"attributes": {"Male": 1}}


def test_what_shard_has_begun_is_not_for_indexing(folder: Path) -> None:
    for path in (folder / "manifest.json", *folder.glob("*.index.json")):
        path.unlink()
    with pytest.raises(UserError, match="`shard` has not finished"):
        load_manifest(folder)
    with pytest.raises(UserError, match="`shard` has not finished"):
        index_tars(folder)


def test_advice_fits_who_wrote_the_tars(folder: Path, tmp_path: Path) -> None:
    foreign_tars(tmp_path / "theirs")
    (tmp_path / "theirs" / "._part-0.tar").write_bytes(b"of a Mac")
    index_tars(tmp_path / "theirs", workers=1)
    for tar in (tmp_path / "theirs" / "part-1.tar", folder / "shard-000000.tar"):
        content = bytearray(tar.read_bytes())
        content[1000] ^= 1
        tar.write_bytes(content)
    theirs = latentfuse("verify", tmp_path / "theirs", "--workers", "1")
    assert theirs.code == 2 and "--index-only" in theirs.errors and "delete" not in theirs.errors
    ours = latentfuse("verify", folder, "--workers", "1")
    assert ours.code == 2 and "delete the shards named" in ours.errors and "--index-only" not in ours.errors
