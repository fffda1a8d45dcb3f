"""The benchmark of training steps: right counts, sane rates, JSON; nothing is left behind."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from running import TINY, latentfuse, listing, tiny_arguments

from pipeline import config as configuration
from pipeline.bench import flops, step
from pipeline.config import Config


def test_flops_of_a_network_that_is_counted_by_hand() -> None:
    """Pre-training at 32 px: five convolutions down, five up; backward is twice forward, less the image's gradient."""
    config = Config.model_validate({**TINY, "run_dir": "unused"})
    forward, first = 0, 0
    channels, side = [3, 2, 4, 8, 16, 32], 32
    for inputs, outputs in itertools.pairwise(channels):
        side //= 2
        forward += 2 * inputs * outputs * 16 * side * side
        first = first or forward
    assert flops.per_image(config)[flops.PRETRAINING] == 3 * 2 * forward - first


def test_a_step_is_measured_and_counted(tmp_path: Path) -> None:
    arguments = tiny_arguments(tmp_path / "run", tmp_path / "nowhere", "perceptual.weights=imagenet")
    before = listing(tmp_path)
    result = latentfuse("bench", "step", *arguments, "--steps", "2", "--json")
    assert result.code == 0, result
    told = json.loads(result.out)
    assert [each["stage"] for each in told["speeds"]] == ["pretrain", "train"] and told["precision"] == "no"
    for each in told["speeds"]:
        images = each["images_per_second"] * each["seconds_per_step"]
        assert images == pytest.approx(4) and told["global_batch_size"] == 4
        assert 0 < each["share"] < 1 and each["flop_per_second"] == each["images_per_second"] * each["flop_per_image"]
        assert each["peak_memory_bytes"] > 10_000_000
    config = configuration.load(tmp_path / "tiny.yaml")
    assert told["speeds"][1]["flop_per_image"] == flops.useful(config)
    assert listing(tmp_path) == before, "nothing is written"
    shown = latentfuse("bench", "step", *arguments, "--steps", "1")
    assert shown.code == 0 and "images/s" in shown.out and "GFLOP/image" in shown.out
    latentfuse("bench", "step", *arguments, "--set", "training.mixed_precision=fp16").assert_one_line("fp16")


def test_the_matrix_rate_is_that_of_this_machine() -> None:
    rate = step.matrix_rate(torch.device("cpu"), torch.float32, seconds=0.1)
    assert 1e8 < rate < 1e14
