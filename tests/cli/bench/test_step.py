"""The benchmark of training steps: right counts, sane rates, JSON; nothing is left behind."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from running import TINY, latentfuse, listing, new_runtime, tiny_arguments, tiny_config

from pipeline.cli.bench import flops, step
from pipeline.cli.bench.literal import LiteralStage
from pipeline.config import load as configuration
from pipeline.config.schema import Config
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage

ALL_ONES = ("fusion.mixture.endpoints=1", *(f"fusion.mixture.{n}=0" for n in ("coin_flips", "single", "uniform")))


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


def test_separation_is_counted_by_micro_batch() -> None:
    """One pair of the fewest images, or of twice as many: half the work for each."""
    tiny = {**TINY, "run_dir": "unused", "loss_weights": {"separation": 1.0}, "fusion": {"separation_pairs": 1}}
    found = []
    for micro in (2, 4):
        training = {**TINY["training"], "global_batch_size": 4, "micro_batch_size": micro}
        found.append(flops.per_image(Config.model_validate({**tiny, "training": training})))
    assert found[0]["separation"] == pytest.approx(2 * found[1]["separation"], rel=1e-6)
    seven_vgg = 7 * found[0]["VGG: fused"] // 2  # five flipped images, A' and B', of two images
    assert found[0]["separation"] > seven_vgg


def test_similarity_is_counted_in_both_stages() -> None:
    """Four maps of three channels through two products each; backward the three of them that A' is in."""
    found = [
        flops.per_image(Config.model_validate({**TINY, "run_dir": "unused", "loss_weights": {"ssim": weight}}))
        for weight in (0, 1)
    ]
    of_map = 3 * 2 * 2 * 32**3
    assert found[1]["SSIM"] == pytest.approx((4 + 3) * of_map, rel=0.05)
    assert found[1][flops.PRETRAINING] - found[0][flops.PRETRAINING] == found[1]["SSIM"]


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
        assert 100_000 < each["peak_memory_bytes"] < 2_000_000_000
    config = configuration.load(tmp_path / "tiny.yaml")
    assert told["speeds"][1]["flop_per_image"] == flops.useful(config)
    assert listing(tmp_path) == before, "nothing is written"
    shown = latentfuse("bench", "step", *arguments, "--steps", "1")
    assert shown.code == 0 and "images/s" in shown.out and "GFLOP/image" in shown.out
    latentfuse("bench", "step", *arguments, "--set", "training.mixed_precision=fp16").assert_one_line("fp16")


def test_as_many_steps_have_the_penalty_as_in_the_long_run(tmp_path: Path) -> None:
    arguments = tiny_arguments(tmp_path / "run", tmp_path / "nowhere", "penalty.every=3")
    assert json.loads(latentfuse("bench", "step", *arguments, "--steps", "2", "--json").out)["steps"] == 3


def test_the_matrix_rate_is_that_of_this_machine() -> None:
    rate = step.matrix_rate(torch.device("cpu"), torch.float32, seconds=0.1)
    assert 1e8 < rate < 1e14


def test_beside_the_literal_step_and_float64(tmp_path: Path) -> None:
    arguments = tiny_arguments(tmp_path / "run", tmp_path / "nowhere", "speed.channels_last=true")
    out = tmp_path / "step.json"
    result = latentfuse("bench", "step", *arguments, "--steps=1", "--literal", "--check", "--profile", "--out", out)
    assert result.code == 0, result
    told = json.loads(out.read_text())
    assert [each["stage"] for each in told["speeds"]] == ["pretrain", "train", "literal"]
    assert "times as fast as METHOD coded literally" in result.out and "heaviest operations" in result.out
    assert "convolution" in told["profile"]
    gradients = [value for name, value in told["errors"].items() if name.startswith("gradient/")]
    assert len(gradients) == 2 and all(0 < value < 1e-3 for value in gradients), "float32 is not float64, but near"
    assert 0 < told["errors"]["loss/style"] < 1e-4


@pytest.mark.slow
def test_half_precision_has_larger_errors(tmp_path: Path) -> None:
    """The check can fail: it sees the precision."""
    arguments = tiny_arguments(tmp_path / "run", tmp_path / "nowhere", "training.mixed_precision=bf16")
    told = json.loads(latentfuse("bench", "step", *arguments, "--steps=1", "--check", "--json").out)
    assert 1e-5 < told["errors"]["loss/reconstruction"] < 0.1
    assert 1e-3 < told["errors"]["gradient/autoencoder"] < 1


def test_the_literal_step_computes_the_terms_of_ours(tmp_path: Path) -> None:
    """For Lambda = 1 everywhere C is A', and both name the same losses; BatchNorm apart, of equal size."""
    config = tiny_config(tmp_path / "run", tmp_path / "nowhere", *ALL_ONES)
    setup = Context(config, new_runtime(config), None, None)  # type: ignore[arg-type]  # no images are read
    torch.manual_seed(0)
    ours = FusionStage(setup, tmp_path)
    torch.manual_seed(0)
    literal = LiteralStage(setup)
    batch = step.random_batch(setup.order, 32)
    terms, told = ours.step(0, batch), literal.step(0, batch)
    assert set(told) == set(ours.weights)
    assert float(told["adversarial"].detach()) == pytest.approx(float(terms["loss/adversarial"].detach()), rel=0.5)
    assert float(told["style"].detach()) == pytest.approx(float(terms["loss/style"]), rel=0.2)
    assert float(told["reconstruction"].detach()) == pytest.approx(2 * float(terms["loss/autoencoder"]), rel=0.05)
