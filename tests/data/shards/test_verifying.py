"""No damage goes unnoticed, and the report names shard and key."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from making import member_offsets
from running import latentfuse

from pipeline.data.shards.verifying import verify


def test_verify_finds_cuts(folder: Path) -> None:
    report = verify(folder, workers=2)
    assert not report.problems
    assert json.loads(json.dumps(report.as_dict())).items() >= {"ok": True, "shards": 4, "samples": 18}.items()
    tar = folder / "shard-000001.tar"
    whole, members = tar.read_bytes(), member_offsets(tar)
    cuts = {members[4].offset: "000008", members[5].offset: "000008", members[6].offset_data + 9: "000009", 0: "000006"}
    for cut, key in cuts.items():
        tar.write_bytes(whole[:cut])
        (problem,) = verify(folder, workers=1).problems
        assert (problem.shard, problem.key) == (tar.name, key) and "cut" in problem.message
    tar.write_bytes(whole[:-512])
    (problem,) = verify(folder, workers=1).problems
    assert "end" in problem.message
    tar.write_bytes(whole + bytes(512))
    assert {problem.shard for problem in verify(folder, workers=1).problems} == {tar.name}


def test_verify_finds_every_flipped_byte(folder: Path) -> None:
    tar = folder / "shard-000003.tar"
    whole = tar.read_bytes()
    spans = {}
    for member in member_offsets(tar):
        end = member.offset_data + member.size
        spans[member.name] = (member.offset, end + -end % 512)
    chance = random.Random(1)
    for name, (start, end) in spans.items():
        # The header's first byte, its checksum, bytes anywhere, the last byte of the padding.
        places = [start, start + 155, end - 1, *(chance.randrange(start, end) for _ in range(12))]
        for place in places:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << chance.randrange(8)
            tar.write_bytes(damaged)
            (problem,) = verify(folder, workers=1).problems
            assert (problem.shard, problem.key) == (tar.name, name.split(".")[0]), f"{name}, byte {place}"
    tar.write_bytes(whole[:-1] + b"x")
    assert verify(folder, workers=1).problems


def test_verify_finds_missing_and_extra_files(folder: Path) -> None:
    shutil.copy(folder / "shard-000000.tar", folder / "copy.tar")
    (folder / "shard-000002.tar").unlink()
    index = folder / "shard-000001.index.json"
    index.write_text(index.read_text().replace("000007", "000077"))
    problems = {problem.shard: str(problem) for problem in verify(folder, workers=2).problems}
    assert problems.keys() == {"copy.tar", "shard-000001.index.json", "shard-000002.tar"}
    assert "missing" in problems["shard-000002.tar"] and "not in the manifest" in problems["copy.tar"]


def test_what_may_not_be_read_is_not_called_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def forbidden(path: Path, mode: str = "r", **options: Any) -> Any:
        if path.suffix == ".tar":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(PermissionError, match="shard-000000"):
        verify(folder, workers=1)


def test_the_folder_of_all_splits_stands_for_each(folder: Path) -> None:
    out = folder.parent
    told = json.loads(latentfuse("verify", out, "--workers", "1", "--json").out)
    assert {Path(name).name: report["ok"] for name, report in told.items()} == {"train": True, "test": True}
    (out / "test" / "manifest.json").unlink()
    latentfuse("verify", out, "--workers", "1").assert_one_line(str(out / "test"), "`shard` has not finished")
