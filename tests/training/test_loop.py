"""Resuming, refusing and ending: the run that was stopped is the run that was not."""

import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from running import Trained, assert_equal_bits, latentfuse, listing, make_shards, scalars, tiny_arguments

from pipeline.training import checkpoint
from pipeline.training.optimizing import OptimizerSteps


def newest(run: Path, stage: str) -> Path:
    return checkpoint.steps(run / stage / "checkpoints")[-1]


VARIANTS = {
    "plain": (),
    "workers and accumulation": ("data.workers=1", "training.micro_batch_size=2"),
    "no average, BatchNorm in D": ("training.ema_decay=0", "model.discriminator_norm=batch"),
    "the recommended networks": (
        *("model.structure=pyramid", "model.blocks=residual", "model.norm=none"),
        *("speed.channels_last=true", "penalty.every=2"),
    ),
}


@pytest.mark.parametrize("stage", ["pretrain", "train"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_stopping_half_way_changes_no_bit(trained: Trained, tmp_path: Path, stage: str, variant: str) -> None:
    length = {"pretrain": "training.pretrain_steps", "train": "training.fusion_steps"}[stage]
    options = VARIANTS[variant]
    other_run = [option for option in options if not option.startswith("data.")]  # workers change nothing
    if stage == "train":
        pretrained = tmp_path / "first"
        assert latentfuse("pretrain", *tiny_arguments(pretrained, trained.shards, *other_run)).code == 0
    init = ["--init", str(tmp_path / "first")] if stage == "train" else []

    def go(run: str, steps: int, *settings: str) -> None:
        arguments = tiny_arguments(tmp_path / run, trained.shards, f"{length}={steps}", *settings)
        result = latentfuse(stage, *arguments, *init)
        assert result.code == 0, result

    go("straight", 4, *other_run)
    go("halves", 3, *options)
    assert newest(tmp_path / "halves", stage).name == "step-00000003"
    go("halves", 4, *options)
    assert_equal_bits(newest(tmp_path / "straight", stage), newest(tmp_path / "halves", stage))
    straight, halves = (scalars(tmp_path / run, stage)["loss/total"] for run in ("straight", "halves"))
    assert straight == halves and list(straight) == [1, 2, 3, 4]


def test_looking_more_often_changes_no_bit(trained: Trained, tmp_path: Path) -> None:
    often = ("tracking.image_every=1", "tracking.log_every=3")
    arguments = tiny_arguments(tmp_path / "run", trained.shards, *often)
    assert latentfuse("train", *arguments, "--init", trained.run / "pretrain").code == 0
    assert list(scalars(tmp_path / "run", "train")["fusion/half_way_ghost"]) == [1, 2, 3, 4]
    assert_equal_bits(newest(trained.run, "train"), newest(tmp_path / "run", "train"))


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the finished run, to go on with."""
    return Path(shutil.copytree(trained.run, tmp_path / "run"))


def test_a_finished_stage_says_so(trained: Trained, run: Path) -> None:
    before = listing(run)
    for stage in ("pretrain", "train"):
        result = latentfuse(stage, *tiny_arguments(run, trained.shards))
        assert result.code == 0 and f"{stage}: already finished at step 4" in result.out
    assert listing(run) == before


CHANGES = {
    "seed=1": "seed",
    "data.horizontal_flip=false": "data.horizontal_flip",
    "data.crop=36": "data.crop",
    "training.global_batch_size=8": "training.global_batch_size",
    "training.micro_batch_size=2": "training.micro_batch_size",
    "training.ema_decay=0.5": "training.ema_decay",
    "model.discriminator_norm=none": "model",
    "perceptual.feature_scale=unit": "perceptual",
}


@pytest.mark.parametrize(("stage", "change"), [("pretrain", "seed=1"), *(("train", change) for change in CHANGES)])
def test_what_would_make_it_another_run_is_refused(trained: Trained, run: Path, stage: str, change: str) -> None:
    config, before = (run / "config.yaml").read_text(), listing(run)
    steps = ("training.pretrain_steps=6", "training.fusion_steps=6")
    result = latentfuse(stage, *tiny_arguments(run, trained.shards, *steps, change))
    result.assert_one_line(CHANGES[change], "change it back or set another run_dir")
    assert (run / "config.yaml").read_text() == config, "the configuration of the run, not of the attempt"
    assert listing(run) == before


def test_shards_of_another_manifest_are_refused(run: Path, tmp_path: Path) -> None:
    others = make_shards(tmp_path / "others", first_seed=100)
    result = latentfuse("train", *tiny_arguments(run, others, "training.fusion_steps=6"))
    result.assert_one_line("was trained on other shards", str(others / "train"))


@pytest.mark.parametrize("stage", ["pretrain", "train"])
def test_a_cosine_schedule_ends_at_nothing_and_resumes_where_it_was(
    trained: Trained, tmp_path: Path, stage: str
) -> None:
    settings = ("optimizer.schedule=cosine", "optimizer.learning_rate=0.004", "optimizer.pretrain_learning_rate=0.008")
    arguments = tiny_arguments(tmp_path, trained.shards, *settings)
    init = ["--init", str(trained.run)] if stage == "train" else []
    assert latentfuse(stage, *arguments, *init).code == 0
    rates = scalars(tmp_path, stage)["learning_rate/autoencoder"]
    first = 0.008 if stage == "pretrain" else 0.004
    wanted = {step + 1: first * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)}
    assert rates == pytest.approx(wanted)
    last = newest(tmp_path, stage)
    shutil.copytree(last, tmp_path / "straight")
    shutil.rmtree(last)
    assert "resumed from" in latentfuse(stage, *arguments, *init).out
    assert_equal_bits(tmp_path / "straight", newest(tmp_path, stage))


def test_what_may_change_takes_effect(trained: Trained, run: Path) -> None:
    settings = ("training.fusion_steps=6", "optimizer.learning_rate=0.003", "optimizer.beta2=0.99")
    result = latentfuse("train", *tiny_arguments(run, trained.shards, *settings, "loss_weights.style=2"))
    assert result.code == 0 and "train: resumed from" in result.out and "step-00000004" in result.out
    shown = scalars(run, "train")
    for name in ("autoencoder", "discriminator"):
        rates = shown[f"learning_rate/{name}"]
        assert rates[4] != pytest.approx(3e-3) and rates[5] == rates[6] == pytest.approx(3e-3)
    assert shown["loss_weighted/style"][6] == pytest.approx(2 * shown["loss/style"][6], rel=1e-5)
    groups = checkpoint.load(newest(run, "train")).optimizers["autoencoder"]["param_groups"]
    assert groups[0]["lr"] == 0.003 and groups[0]["betas"] == (0.5, 0.99)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["optimizer"]["learning_rate"] == 0.003 and config["training"]["fusion_steps"] == 6


@pytest.mark.parametrize("fused", [True, False])
def test_a_fused_optimizer_may_be_switched_on_and_off(trained: Trained, run: Path, fused: bool) -> None:
    for steps, setting in ((5, not fused), (6, fused)):
        settings = (f"training.fusion_steps={steps}", f"optimizer.fused={setting}")
        result = latentfuse("train", *tiny_arguments(run, trained.shards, *settings))
        assert result.code == 0 and "train: resumed from" in result.out, result.errors
    for optimizer in ("autoencoder", "discriminator"):
        assert checkpoint.load(newest(run, "train")).optimizers[optimizer]["param_groups"][0]["fused"] is fused


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_aloud(trained: Trained, run: Path, name: str) -> None:
    damaged = newest(run, "train")
    (damaged / name).write_bytes((damaged / name).read_bytes()[:-3])
    result = latentfuse("train", *tiny_arguments(run, trained.shards))
    assert result.code == 0 and f"train: passed over {damaged}" in result.out
    assert "train: resumed from" in result.out and "step-00000002" in result.out
    assert_equal_bits(damaged, newest(trained.run, "train"))


def test_nothing_starts_over_in_silence(trained: Trained, run: Path) -> None:
    for folder in checkpoint.steps(run / "train" / "checkpoints"):
        (folder / "model.safetensors").unlink()
    before = listing(run)
    result = latentfuse("train", *tiny_arguments(run, trained.shards))
    result.assert_one_line("no checkpoint verifies", "remove the folder to start over")
    assert listing(run) == before


def test_train_needs_pretraining_or_a_start(trained: Trained, tmp_path: Path) -> None:
    missing = latentfuse("train", *tiny_arguments(tmp_path / "new", trained.shards))
    missing.assert_one_line(str(tmp_path / "new" / "pretrain"), "latentfuse pretrain")
    started = latentfuse("train", *tiny_arguments(tmp_path / "new", trained.shards), "--init", trained.run / "pretrain")
    assert started.code == 0 and f"train: started from {newest(trained.run, 'pretrain')}" in started.out
    assert_equal_bits(newest(tmp_path / "new", "train"), newest(trained.run, "train"))
    wider = tiny_arguments(tmp_path / "wider", trained.shards, "model.base_channels=4")
    latentfuse("train", *wider, "--init", trained.run).assert_one_line("the weights of the autoencoder do not fit")
    nowhere = tmp_path / "nowhere"
    finished = tiny_arguments(tmp_path / "new", trained.shards)
    latentfuse("train", *finished, "--init", nowhere).assert_one_line(f"--init {nowhere}: no such checkpoint")


def test_cadence(trained: Trained, tmp_path: Path) -> None:
    cadence = ("training.pretrain_steps=9", "tracking.log_every=4", "tracking.checkpoint_every=3")
    arguments = tiny_arguments(tmp_path / "run", trained.shards, *cadence, "tracking.keep_checkpoints=2")
    assert latentfuse("pretrain", *arguments).code == 0
    kept = [path.name for path in checkpoint.steps(tmp_path / "run" / "pretrain" / "checkpoints")]
    assert kept == ["step-00000006", "step-00000009"]
    assert list(scalars(tmp_path / "run", "pretrain")["loss/autoencoder"]) == [1, 3, 4, 6, 8, 9]


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(trained: Trained, run: Path) -> None:
    settings = ("training.fusion_steps=12", "optimizer.learning_rate=1e30", "training.max_skipped_steps=2")
    result = latentfuse("train", *tiny_arguments(run, trained.shards, *settings))
    assert result.code == 2 and result.errors.startswith("latentfuse: train") and result.errors.count("\n") == 1
    saved, _ = checkpoint.newest(run / "train" / "checkpoints")
    assert saved is not None and all(torch.isfinite(value).all() for value in saved.weights.values())


def test_none_is_saved_while_steps_are_skipped(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is due then follows as soon as one is applied."""
    losses = iter([1.0, float("inf"), float("inf"), 1.0, 1.0, float("inf")])
    backward = OptimizerSteps.backward
    monkeypatch.setattr(OptimizerSteps, "backward", lambda self, loss: backward(self, loss * next(losses)))
    settings = ("training.pretrain_steps=6", "tracking.checkpoint_every=3")
    result = latentfuse("pretrain", *tiny_arguments(tmp_path / "run", trained.shards, *settings))
    assert result.code == 0 and result.out.count("the step is not applied") == 3
    steps = [path.name for path in checkpoint.steps(tmp_path / "run" / "pretrain" / "checkpoints")]
    assert steps == ["step-00000004", "step-00000006"]


def test_a_copy_of_a_checkpoint_is_neither_taken_nor_dropped(trained: Trained, run: Path) -> None:
    folder = run / "train" / "checkpoints"
    copies = [folder / "step-best", folder / "step-00000002-keep"]
    for copy in copies:
        shutil.copytree(folder / "step-00000002", copy)
    settings = ("training.fusion_steps=6", "tracking.checkpoint_every=1", "tracking.keep_checkpoints=2")
    result = latentfuse("train", *tiny_arguments(run, trained.shards, *settings))
    assert result.code == 0 and f"resumed from {folder / 'step-00000004'}" in result.out
    assert all(copy.is_dir() for copy in copies)
    assert [path.name for path in checkpoint.steps(folder)] == ["step-00000005", "step-00000006"]
