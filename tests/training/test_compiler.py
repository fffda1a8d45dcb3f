"""What torch's compiler is given to compile; what it makes of it is tested beside the other levers (`test_speed`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Trained, batch_of, latentfuse, new_setup, tiny_arguments, tiny_config
from torch import nn

from pipeline.training.fusion import FusionStage
from pipeline.training.pretrain import PretrainStage


def test_nothing_but_steps_is_compiled(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what is measured before training, shown or averaged: other batches, and no step waits for their compiler."""
    graphs: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(place[-1])
        return graph

    def noted(step: Callable[..., Any]) -> Callable[..., Any]:
        def in_step(*arguments: Any) -> Any:
            place.append("step")
            try:
                return step(*arguments)
            finally:
                place.pop()

        return in_step

    place, compile_ = ["elsewhere"], nn.Module.compile
    for stage in (PretrainStage, FusionStage):
        monkeypatch.setattr(stage, "step", noted(stage.step))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compile_(self, backend=compiler, dynamic=False))
    options = (
        *("speed.compile=default", "training.ema_decay=0", "perceptual.feature_scale=unit"),
        *("model.discriminator_norm=layer", "tracking.image_every=2"),
    )
    torch._dynamo.reset()
    for command in ("pretrain", "train"):
        result = latentfuse(command, *tiny_arguments(tmp_path / "run", trained.shards, *options))
        assert result.code == 0, result.errors
    assert graphs and set(graphs) == {"step"}


@pytest.mark.parametrize("micro", [2, 4])
def test_gradients_of_cuda_graphs_are_added_to_ours(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    """Theirs lie in the graphs' memory, which the next micro-batch overwrites. Without graphs the numbers are alike."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: None)
    weights = []
    for compiled in ("no", "reduce-overhead"):
        options = (f"training.micro_batch_size={micro}", f"speed.compile={compiled}")
        stage = FusionStage(new_setup(tiny_config(tmp_path / compiled, trained.shards, *options)), trained.run)
        stage.begin()
        parameters = [p for module in (stage.average.trained, stage.critic) for p in module.parameters()]
        ours = [p.grad for p in parameters]
        for step in range(2):
            stage.step(step, batch_of(stage.context, step))
        if compiled != "no":
            assert all(grad is not None and p.grad is grad for p, grad in zip(parameters, ours, strict=True))
        weights.append([p.detach() for p in parameters])
    torch.testing.assert_close(weights[0], weights[1])
