"""The benchmark of loading: rates of the same images, and what their ratios mean."""

import json
from pathlib import Path

import pytest
import webdataset
from running import Trained, latentfuse, tiny_arguments


@pytest.mark.parametrize("workers", [0, 1])
def test_rates_and_ratios(trained: Trained, tmp_path: Path, workers: int) -> None:
    arguments = ("bench", "loader", trained.shards / "train" if workers else trained.shards, "--images", "64")
    options = tiny_arguments(tmp_path / "run", trained.shards, f"data.workers={workers}")
    told = json.loads(latentfuse(*arguments, *options, "--json").out)
    assert told["images"] == 256 and told["workers"] == workers and told["image_size"] == 32
    rates = ("decoder", "loader", "loader_0", "loader_1", "webdataset")
    assert min(told[name] for name in rates) > 10
    assert told["of_decoder"] == pytest.approx(told["loader"] / told["decoder"])
    assert told["over_webdataset"] == pytest.approx(told["loader"] / told["webdataset"])
    if not workers:
        shown = latentfuse(*arguments, *options)
        assert shown.code == 0 and "plain webdataset with Pillow" in shown.out
        missing = latentfuse("bench", "loader", tmp_path / "none", *options)
        missing.assert_one_line(str(tmp_path / "none"))


def test_samples_without_an_image(trained: Trained, tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, photograph in enumerate(sorted((trained.shards / "photographs").iterdir())):
            writer.write({"__key__": str(number)} | ({"jpg": photograph.read_bytes()} if number % 3 else {"cls": b"1"}))
    assert latentfuse("shard", tmp_path, "--index-only", "--max-rejected", "9").code == 0
    arguments = ("bench", "loader", tmp_path, "--images", "64", *tiny_arguments(tmp_path / "run", trained.shards))
    assert latentfuse(*arguments).code == 0
