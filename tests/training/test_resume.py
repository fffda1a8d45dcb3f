"""What a checkpoint on disk can be instead of this run's newest: none of it is loaded, and nothing is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Trained, latentfuse, listing, tiny_arguments

from pipeline.common import files
from pipeline.training import checkpoint


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the finished run, to go on with."""
    return Path(shutil.copytree(trained.run, tmp_path / "run"))


def go_on(trained: Trained, run: Path, stage: str = "train") -> list[str]:
    steps = ("training.fusion_steps=6", "training.pretrain_steps=6")
    return [stage, *tiny_arguments(run, trained.shards, *steps)]


def change_optimizers(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """And let the manifest agree."""
    optimizers = torch.load(path / "optimizers.pt", weights_only=True)
    change(optimizers)
    torch.save(optimizers, path / "optimizers.pt")
    sums = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(sums | {"optimizers.pt": files.sha256(path / "optimizers.pt")}))


def of_first(**values: Any) -> Callable[[dict[str, Any]], object]:
    """Other values in the moments of the first parameter of E and G."""
    return lambda optimizers: optimizers["autoencoder"]["state"][0].update(values)


def like_first(make: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], object]:
    def change(optimizers: dict[str, Any]) -> None:
        first = optimizers["autoencoder"]["state"][0]
        first["exp_avg"] = make(first["exp_avg"])

    return change


def shorter(optimizers: dict[str, Any]) -> None:
    """What made the fused Adam read beyond the end: every moment of one number."""
    for each in optimizers["autoencoder"]["state"].values():
        each.update(exp_avg=torch.zeros(1), exp_avg_sq=torch.zeros(1))


RESIZED: dict[str, Callable[[dict[str, Any]], object]] = {
    "shorter": shorter,
    "longer": of_first(exp_avg_sq=torch.zeros(10**6)),
    "no tensor": of_first(exp_avg=[0.0]),
    "several steps": of_first(step=torch.zeros(7)),
    "a number of steps that is none": of_first(step=torch.tensor(-3.0)),
    "integers": like_first(lambda moment: moment.long()),
    "sparse": like_first(lambda moment: moment.to_sparse()),
    "without memory": like_first(lambda moment: moment.to("meta")),
    "not finite": like_first(lambda moment: moment * float("nan")),
    "something else": of_first(max_exp_avg_sq=torch.zeros(1)),
    "of a parameter too many": lambda optimizers: optimizers["autoencoder"]["state"].update({10_000: {}}),
    "a list": lambda optimizers: optimizers["discriminator"].update(state=[]),
    "one optimizer less": lambda optimizers: optimizers.pop("discriminator"),
}


@pytest.mark.parametrize("change", RESIZED)
def test_moments_that_do_not_fit_are_refused_before_they_are_loaded(trained: Trained, run: Path, change: str) -> None:
    newest = checkpoint.steps(run / "train" / "checkpoints")[-1]
    change_optimizers(newest, RESIZED[change])
    before = listing(run)
    latentfuse(*go_on(trained, run)).assert_one_line(str(newest / "optimizers.pt"), "does not fit the optimizer of the")
    assert listing(run) == before


def test_settings_of_another_optimizer_are_not_taken(trained: Trained, run: Path) -> None:
    """Only moments are loaded: the groups are as configured now."""
    newest = checkpoint.steps(run / "train" / "checkpoints")[-1]
    groups = {"amsgrad": True, "maximize": True, "foreach": "yes", "betas": (2, 2)}
    change_optimizers(newest, lambda optimizers: optimizers["autoencoder"]["param_groups"][0].update(groups))
    assert latentfuse(*go_on(trained, run)).code == 0
    assert latentfuse(*go_on(trained, Path(shutil.copytree(trained.run, run.parent / "straight")))).code == 0
    one, other = (checkpoint.find(run.parent / name).weights for name in ("run", "straight"))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_checkpoint_under_another_name_is_passed_over(trained: Trained, run: Path) -> None:
    folder = run / "train" / "checkpoints"
    shutil.copytree(folder / "step-00000002", folder / "step-00009000")
    result = latentfuse(*go_on(trained, run))
    assert result.code == 0 and f"train: passed over {folder / 'step-00009000'}: holds step 2" in result.out
    assert f"train: resumed from {folder / 'step-00000004'}" in result.out


def test_an_optimizer_that_does_not_load_is_passed_over(trained: Trained, run: Path) -> None:
    newest = checkpoint.steps(run / "train" / "checkpoints")[-1]
    (newest / "optimizers.pt").write_text("not one")
    sums = json.loads((newest / "manifest.json").read_text()) | {
        "optimizers.pt": files.sha256(newest / "optimizers.pt")
    }
    (newest / "manifest.json").write_text(json.dumps(sums))
    result = latentfuse(*go_on(trained, run))
    assert result.code == 0 and f"train: passed over {newest / 'optimizers.pt'}" in result.out
    assert "train: resumed from" in result.out and "step-00000002" in result.out


def test_a_checkpoint_of_another_stage_is_refused(trained: Trained, run: Path) -> None:
    folder = run / "pretrain" / "checkpoints"
    shutil.rmtree(folder)
    shutil.copytree(run / "train" / "checkpoints", folder)
    latentfuse(*go_on(trained, run, "pretrain")).assert_one_line("step-00000004: is of the stage train, not pretrain")


def test_a_schedule_that_changes_is_told(trained: Trained, run: Path) -> None:
    changes = ("--set", "optimizer.schedule=cosine", "--set", "penalty.k=3", "--set", "tracking.log_every=2")
    result = latentfuse(*go_on(trained, run), *changes)
    assert result.code == 0
    assert (
        "train: changed from step 4 on: training.fusion_steps 6 (was 4), optimizer.schedule cosine (was constant), "
        "penalty.k 3.0 (was 2.0)\n" in result.out
    )
    same = latentfuse(*go_on(trained, run), *changes)
    assert same.code == 0 and "changed" not in same.out


def test_init_is_told_when_it_is_not_used(trained: Trained, run: Path) -> None:
    for command in (go_on(trained, run), [*go_on(trained, run), "--init", trained.run]):
        result = latentfuse(*command)
        assert result.code == 0
        assert (f"train: --init {trained.run} is not used" in result.out) == ("--init" in command)
    assert "step-00000006" in result.out and "set another run_dir" in result.out


def test_init_from_a_run_without_an_average_is_one_short_line(trained: Trained, tmp_path: Path) -> None:
    options = ("training.pretrain_steps=1", "training.fusion_steps=1")
    first = tiny_arguments(tmp_path / "first", trained.shards, *options, "training.ema_decay=0")
    assert latentfuse("pretrain", *first).code == 0
    result = latentfuse(
        "train", *tiny_arguments(tmp_path / "run", trained.shards, *options), "--init", tmp_path / "first"
    )
    result.assert_one_line("was trained without a moving average; set training.ema_decay=0")
    assert len(result.errors) < 300
    without = tiny_arguments(tmp_path / "run", trained.shards, *options, "training.ema_decay=0")
    assert latentfuse("train", *without, "--init", tmp_path / "first").code == 0


def test_stop_left_by_an_earlier_job_stops_none(trained: Trained, run: Path) -> None:
    (run / "STOP").touch()
    result = latentfuse(*go_on(trained, run))
    assert result.code == 0 and f"{run / 'STOP'}: was there before this job began; removed" in result.out
    assert not (run / "STOP").exists() and "step-00000006" in result.out
