"""The benchmark of sharding: four rates of the same images, and what their ratios mean."""

import json
import shutil
from pathlib import Path

import pytest
from running import latentfuse

from pipeline.cli.bench import sharding
from pipeline.data.synth.faces import write_faces

COUNT = 12
KEYS = {"images", "workers", "folder", "decoder", "validated", "unvalidated", "tar", "of_decoder", "times_tar"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "faces"
    write_faces(folder, COUNT)
    return folder


@pytest.mark.parametrize("count", [COUNT, 7])
def test_rates_and_ratios(source: Path, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "ROUNDS", 1)
    arguments = ("bench", "shard", source, "--images", count, "--workers", 2, "--folder", tmp_path)
    told = json.loads(latentfuse(*arguments, "--json").out)
    assert told.keys() == KEYS and told["folder"] == str(tmp_path)
    assert (told["images"], told["workers"]) == (count, 2)
    assert min(told[name] for name in ("decoder", "validated", "unvalidated", "tar")) > 1
    assert told["of_decoder"] == pytest.approx(told["validated"] / told["decoder"])
    assert told["times_tar"] == pytest.approx(told["tar"] / told["unvalidated"])
    assert not list(tmp_path.iterdir())


def test_some_images_are_sharded_with_what_is_known_of_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded = []

    def look(path: Path, out: Path, count: int, workers: int, *, validate: bool) -> float:
        sharded.append([(each.key, each.attributes, each.landmarks) for each in sharding.open_source(path).records])
        return 1.0

    monkeypatch.setattr(sharding, "_shard", look)
    sharding.measure(source, 4, 1, tmp_path)
    known = [(each.key, each.attributes, each.landmarks) for each in sharding.open_source(source).records]
    assert known[0][1] and known[0][2]
    assert sharded == [known[:4]] * (2 * sharding.ROUNDS)


def test_without_tar(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "ROUNDS", 1)
    monkeypatch.setattr(sharding.shutil, "which", lambda name: None)
    shown = latentfuse("bench", "shard", source, "--folder", tmp_path, "--workers", "1")
    assert shown.code == 0 and "shard --no-validate" in shown.out and "tar is not installed" in shown.out


def test_what_cannot_be_measured(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("bench", "shard", "--folder", tmp_path)
    latentfuse(*arguments, str(tmp_path / "none")).assert_one_line(str(tmp_path / "none"))
    bad = tmp_path / "bad"
    shutil.copytree(source, bad)
    (bad / "img_align_celeba" / "000003.jpg").write_bytes(b"text")
    latentfuse(*arguments, bad).assert_one_line("000003.jpg", "not a JPEG")
    latentfuse("bench", "shard", source, "--folder", str(tmp_path / "none")).assert_one_line("none")
    kept = sharding.write_shards

    def loses_some(path: Path, out: Path, **options: object) -> object:
        (path / "img_align_celeba" / "000005.jpg").unlink()
        return kept(path, out, **options)  # type: ignore[arg-type]

    shutil.copytree(source, bad, dirs_exist_ok=True)  # whole again
    monkeypatch.setattr(sharding, "write_shards", loses_some)
    latentfuse(*arguments, bad).assert_one_line(f"{COUNT - 1} images in the shards, {COUNT} wanted")
