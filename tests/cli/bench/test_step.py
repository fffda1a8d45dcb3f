"""The benchmark of training steps: right counts, sane rates, JSON; nothing is left behind."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from running import latentfuse, listing, new_runtime, tiny_arguments, tiny_config

from pipeline.cli.bench import step
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage
from pipeline.training.pretrain import PretrainStage


def flop(folder: Path, *overrides: str) -> tuple[int, int]:
    """Per image, of pre-training and of a fusion step."""
    sizes = ("training.global_batch_size=2", "training.micro_batch_size=2")
    config = tiny_config(folder / "run", folder / "nowhere", *sizes, *overrides)
    context = Context(config, new_runtime(config), None, None)  # type: ignore[arg-type]  # no images are read
    batch = step.random_batch(context.order, 32)
    makes = (lambda: PretrainStage(context), lambda: FusionStage(context, folder))
    pretrain, train = (step.count(make, context, batch)[1] for make in makes)
    return pretrain, train


def test_a_step_is_measured(tmp_path: Path) -> None:
    """Without the data and the weights that the configuration names."""
    arguments = tiny_arguments(tmp_path / "run", tmp_path / "nowhere", "perceptual.weights=imagenet", "penalty.every=3")
    before = listing(tmp_path)
    result = latentfuse("bench", "step", *arguments, "--steps=2", "--json")
    assert result.code == 0, result
    assert listing(tmp_path) == before, "nothing is written"
    told = json.loads(result.out)
    assert told["steps"] == 3, "one in three has the penalty, as in training"
    assert [each["stage"] for each in told["speeds"]] == ["pretrain", "train"] and told["precision"] == "no"
    for each in told["speeds"]:
        images = each["images_per_second"] * each["seconds_per_step"]
        assert images == pytest.approx(4) and told["global_batch_size"] == 4
        assert each["share"] == pytest.approx(each["flop_per_second"] / each["matrix_flop_per_second"])
        assert each["flop_per_second"] == each["images_per_second"] * each["flop_per_image"]
        assert 100_000 < each["peak_memory_bytes"] < 2_000_000_000
    latentfuse("bench", "step", *arguments, "--set", "training.mixed_precision=fp16").assert_one_line("fp16")


def test_a_table_and_the_heaviest_operations(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    arguments = tiny_arguments(tmp_path / "run", tmp_path / "nowhere")
    shown = latentfuse("bench", "step", *arguments, "--steps=1", "--profile", "--out", out)
    assert shown.code == 0 and "images/s" in shown.out and "GFLOP/image" in shown.out
    assert "convolution" in shown.out and "convolution" in json.loads(out.read_text())["profile"]


def test_flop_of_pretraining_are_as_counted_by_hand(tmp_path: Path) -> None:
    """At 32 px: five convolutions down, five up; backward is twice forward, less the gradient of the images."""
    forward, first = 0, 0
    channels, side = [3, 2, 4, 8, 16, 32], 32
    for inputs, outputs in itertools.pairwise(channels):
        side //= 2
        forward += 2 * inputs * outputs * 16 * side * side
        first = first or forward
    of_map = 3 * 2 * 2 * 32**3  # of SSIM: three channels, a product from each side
    pretrain, train = flop(tmp_path, "loss_weights.ssim=0")
    assert pretrain == 3 * 2 * forward - first
    with_ssim = flop(tmp_path, "loss_weights.ssim=1")
    for more in (with_ssim[0] - pretrain, with_ssim[1] - train):
        assert more == pytest.approx((4 + 3) * of_map, rel=0.05), "four maps; backward the three that A' is in"


def test_flop_are_those_of_training_without_what_is_computed_twice(tmp_path: Path) -> None:
    """Accumulation computes C twice: that is not counted. The penalty counts with its share of the steps."""
    _, every_step = flop(tmp_path)
    assert flop(tmp_path, "training.global_batch_size=4")[1] == every_step
    _, half = flop(tmp_path, "penalty.every=2")
    _, third = flop(tmp_path, "penalty.every=3")
    assert half < every_step and every_step - third == pytest.approx((every_step - half) * 4 / 3, rel=1e-3)


def test_the_matrix_rate_is_that_of_this_machine() -> None:
    rate = step.matrix_rate(torch.device("cpu"), torch.float32, seconds=0.1)
    assert 1e8 < rate < 1e14
