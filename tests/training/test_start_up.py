"""A run of full width goes on within seconds of its imports."""

import time
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from running import REPOSITORY, make_shards

from pipeline.cli import workflow
from pipeline.config import load as configuration
from pipeline.config.schema import Config
from pipeline.data.loading.loader import MicroBatch
from pipeline.training.fusion import FusionStage

MOST_SECONDS = 5.0


class Begun(Exception):
    """The first step has its batch."""


@pytest.mark.slow
def test_resumed_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(tmp_path / "shards")

    def config(steps: int) -> Config:
        AcceleratorState._reset_state(True)  # forgets the job before
        sets = [f"run_dir={tmp_path / 'run'}", f"data.shards={shards}", "training.device=cpu", "data.workers=1"]
        sets += ["perceptual.weights=random", "training.pretrain_steps=1", f"training.fusion_steps={steps}"]
        sets += ["tracking.image_every=1000", "training.global_batch_size=2", "training.micro_batch_size=2"]
        return configuration.load(REPOSITORY / "configs" / "default.yaml", sets)

    workflow.pretrain(config(1))
    workflow.train(config(1), None)
    resumed = config(2)
    began = time.perf_counter()

    def step(stage: FusionStage, step: int, batch: list[MicroBatch]) -> dict[str, Any]:
        assert step == 1 and sum(len(micro.images) for micro in batch) == 2
        raise Begun

    monkeypatch.setattr(FusionStage, "step", step)
    with pytest.raises(Begun):
        workflow.train(resumed, None)
    seconds = time.perf_counter() - began
    print(f"\n{seconds:.2f} s from the start of the command to the first step")
    assert seconds < MOST_SECONDS
