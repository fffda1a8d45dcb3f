"""The benchmark of sharding: two rates of the same images, and their ratio."""

import json
import shutil
from pathlib import Path

import pytest
from running import latentfuse

from pipeline.cli.bench import sharding
from pipeline.data.synth.faces import write_faces

COUNT = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "faces"
    write_faces(folder, COUNT)
    return folder


@pytest.mark.parametrize(("count", "expected"), [(COUNT + 1, COUNT), (7, 7)])
def test_rates_and_ratio(
    source: Path, tmp_path: Path, count: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "ROUNDS", 1)
    arguments = ("bench", "shard", source, "--images", count, "--workers", 2, "--folder", tmp_path)
    told = json.loads(latentfuse(*arguments, "--json").out)
    assert told.keys() == {"images", "workers", "folder", "decoder", "shard", "of_decoder"}
    assert (told["images"], told["workers"], told["folder"]) == (expected, 2, str(tmp_path))
    assert min(told["decoder"], told["shard"]) > 1
    assert told["of_decoder"] == pytest.approx(told["shard"] / told["decoder"])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_measured(source: Path, tmp_path: Path) -> None:
    arguments = ("bench", "shard", "--folder", tmp_path)
    latentfuse(*arguments, str(tmp_path / "none")).assert_one_line(str(tmp_path / "none"))
    latentfuse("bench", "shard", source, "--folder", str(tmp_path / "none")).assert_one_line("none")
    bad = tmp_path / "bad"
    shutil.copytree(source, bad)
    (bad / "img_align_celeba" / "000003.jpg").write_bytes(b"text")
    latentfuse(*arguments, bad).assert_one_line("000003.jpg", "not a readable image")
