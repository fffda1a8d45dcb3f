"""The literal step and the comparison with float64 run, and agree with the training step."""

import json
from pathlib import Path

import pytest
import torch
from running import new_runtime, tiny_arguments, tiny_config

from benchmarks.literal_step import LiteralStage, errors, main
from pipeline.cli.bench import step
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage

ALL_ONES = ("fusion.mixture.endpoints=1", *(f"fusion.mixture.{n}=0" for n in ("coin_flips", "single", "uniform")))


def context_of(folder: Path, *overrides: str) -> Context:
    config = tiny_config(folder / "run", folder / "nowhere", *overrides)
    return Context(config, new_runtime(config), None, None)  # type: ignore[arg-type]  # no images are read


def test_the_command_shows_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context_of(tmp_path)  # a fresh state of accelerate
    sizes = ("training.global_batch_size=2", "training.micro_batch_size=2")
    arguments = tiny_arguments(tmp_path / "run", tmp_path / "nowhere", *sizes)
    out = tmp_path / "step.json"
    main([*arguments, "--steps=1", "--literal", "--check", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "coded literally" in printed and "error against float64" in printed
    told = json.loads(out.read_text())
    assert [each["stage"] for each in told["speeds"]] == ["pretrain", "train", "literal"]
    assert told["speeds"][1]["flop_per_image"] == told["speeds"][2]["flop_per_image"]
    gradients = [value for name, value in told["errors"].items() if name.startswith("gradient/")]
    assert len(gradients) == 2 and all(0 < value < 1e-3 for value in gradients), "float32 is close to float64"
    assert 0 < told["errors"]["loss/style"] < 1e-4


def test_half_precision_has_larger_errors(tmp_path: Path) -> None:
    found = errors(context_of(tmp_path, "training.mixed_precision=bf16"))
    assert 1e-6 < found["loss/reconstruction"] < 0.1
    assert 1e-3 < found["gradient/autoencoder"] < 1


def test_the_literal_step_computes_the_terms_of_ours(tmp_path: Path) -> None:
    """For Lambda = 1 everywhere C is A', and both name the same losses; BatchNorm apart, of equal size."""
    context = context_of(tmp_path, *ALL_ONES)
    torch.manual_seed(0)
    ours = FusionStage(context, tmp_path)
    torch.manual_seed(0)
    literal = LiteralStage(context)
    batch = step.random_batch(context.order, 32)
    terms, told = ours.step(0, batch), literal.step(0, batch)
    assert set(told) == set(ours.weights)
    assert float(told["adversarial"].detach()) == pytest.approx(float(terms["loss/adversarial"].detach()), rel=0.5)
    assert float(told["style"].detach()) == pytest.approx(float(terms["loss/style"]), rel=0.2)
    assert float(told["reconstruction"].detach()) == pytest.approx(2 * float(terms["loss/autoencoder"]), rel=0.05)
