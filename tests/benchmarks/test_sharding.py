"""The benchmark of sharding: two rates of the same images, and their ratio."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import sharding
from pipeline.common.errors import UserError
from pipeline.data.synth.faces import write_faces


def test_rates_and_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sharding, "ROUNDS", 1)
    source, disk = tmp_path / "faces", tmp_path / "disk"
    disk.mkdir()
    write_faces(source, 12)
    options = ["sharding.py", str(source), "--images", "7", "--workers", "2", "--folder", str(disk)]
    monkeypatch.setattr(sys, "argv", options)
    assert sharding.main() == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["workers"], told["folder"]) == (7, 2, str(disk))
    assert min(told["decoder"], told["shard"]) > 1
    assert told["of_decoder"] == pytest.approx(told["shard"] / told["decoder"])
    assert not list(disk.iterdir())
    (source / "img_align_celeba" / "000003.jpg").write_bytes(b"text")
    with pytest.raises(UserError, match="not a readable image"):
        sharding.main()
