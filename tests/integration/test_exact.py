"""DDP is exact: 1, 2 and 4 ranks compute the same gradients in float64, hold the same weights, and log the same."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import narrow, start_ranks
from running import Trained, scalars, tiny_arguments

from pipeline.training import checkpoint

GLOBAL = (
    "training.global_batch_size=8",
    "training.micro_batch_size=2",
    "training.pretrain_steps=2",
    "training.fusion_steps=2",
    "training.ema_decay=0.9",
)
RELATIVE = (1e-12, 1e-9)
"""By step: Adam divides by the gradient's own size, so the second starts from weights that differ a little more."""


def in_float64_and_told() -> None:
    """Everything in float64; the gradients before every optimizer step, and the weights after it, go to a file."""
    from pipeline.training import loop
    from pipeline.training.optimizing import OptimizerSteps

    narrow()
    torch.set_default_dtype(torch.float64)
    gradients: dict[str, list[torch.Tensor]] = {}
    digests: list[str] = []
    apply, run = OptimizerSteps.apply, loop.run

    def tell(self: OptimizerSteps, optimizer: Any, what: str) -> torch.Tensor:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        step = torch.cat([p.grad.flatten() for p in parameters])
        assert step.dtype == torch.float64
        gradients.setdefault(what, []).append(step)
        norm = apply(self, optimizer, what)
        weights = b"".join(p.detach().numpy().tobytes() for p in parameters)
        digests.append(hashlib.sha256(weights).hexdigest())
        return norm

    def and_save(stage: Any, context: Any) -> None:
        run(stage, context)
        torch.save({"gradients": gradients, "digests": digests}, Path(os.environ["TOLD"]) / f"{os.environ['RANK']}.pt")

    OptimizerSteps.apply = tell  # type: ignore[method-assign]
    loop.run = and_save


def train(folder: Path, shards: Path, ranks: int, init: Path, *options: str) -> list[dict[str, Any]]:
    """Both stages on `ranks` ranks; what each told."""
    told = []
    for command in (("pretrain",), ("train", "--init", init)):
        place = folder / command[0]
        place.mkdir(parents=True)
        arguments = (command[0], *tiny_arguments(place / "run", shards, *GLOBAL, *options), *command[1:])
        started = start_ranks(place, ranks, *arguments, prepare=in_float64_and_told, TOLD=str(place))
        results = [each.finish() for each in started]
        assert [each.code for each in results] == [0] * ranks, results
        assert [f"{command[0]} 2/2" in each.out for each in results] == [True] + [False] * (ranks - 1)
        told += [torch.load(place / f"{rank}.pt") for rank in range(ranks)]
        assert len({tuple(each["digests"]) for each in told[-ranks:]}) == 1, "all ranks hold the same weights"
    return told


def assert_same_run(one: Path, other: Path, stage: str) -> None:
    """Logged terms, which are float32, and saved weights."""
    first, second = scalars(one, stage), scalars(other, stage)
    assert first.keys() == second.keys() and list(first["loss/total"]) == [1, 2]
    for tag in first:
        if not tag.startswith("speed/"):
            assert list(second[tag].values()) == pytest.approx(list(first[tag].values()), rel=1e-5, abs=1e-9), tag
    saved, others = (checkpoint.find(run / stage) for run in (one, other))
    assert saved.weights.keys() == others.weights.keys()
    for key, value in saved.weights.items():
        if key.startswith("average") or not ("running_" in key or "num_batches" in key):  # each rank's own, never used
            torch.testing.assert_close(others.weights[key], value, rtol=1e-6, atol=1e-8, msg=key)


@pytest.mark.parametrize("norm", ["layer", pytest.param("batch", marks=pytest.mark.faults)])
def test_gradients_are_those_of_one_process(trained: Trained, tmp_path: Path, norm: str) -> None:
    options = (f"model.discriminator_norm={norm}",)
    init = trained.run / "pretrain"
    assert checkpoint.find(init).state["stage"] == "pretrain"
    one = train(tmp_path / "1", trained.shards, 1, init, *options)
    for ranks in (2, 4):
        several = train(tmp_path / str(ranks), trained.shards, ranks, init, *options)
        for stage, alone in enumerate(one):
            names = {"pretrain"} if stage == 0 else {"train, discriminator", "train, autoencoder"}
            assert alone["gradients"].keys() == names
            command = "train" if stage else "pretrain"
            assert_same_run(tmp_path / "1" / command / "run", tmp_path / str(ranks) / command / "run", command)
            for rank in range(ranks):
                told = several[stage * ranks + rank]
                for name in names:
                    assert len(alone["gradients"][name]) == 2
                    pairs = zip(alone["gradients"][name], told["gradients"][name], strict=True)
                    for step, (expected, gradient) in enumerate(pairs):
                        difference = float((gradient - expected).norm() / expected.norm())
                        assert expected.norm() > 0 and difference < RELATIVE[step], (ranks, name, step, difference)
