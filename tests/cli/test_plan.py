"""Time and memory of a plan, from the pace of its steps."""

from pathlib import Path

import pytest
import torch
from running import tiny_config

from pipeline.cli import plan
from pipeline.cli.bench.pace import Line, Pace

GIB = 2**30


def pace(stage: str, steps: int, seconds: float, fixed: float = 1, per_image: float = 0.5) -> Pace:
    return Pace(stage, steps, seconds, Line(fixed * GIB, per_image * GIB))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0021, "2.1 ms"), (0.4, "400 ms"), (1.3, "1.3 seconds"), (89, "89 seconds"), (90, "1.5 minutes"),
        (3600, "60 minutes"), (5 * 3600, "5.0 hours"), (2.5 * 86_400, "2.5 days"), (40 * 86_400, "40 days"),
        (200 * 86_400, "6.6 months"), (3 * 365 * 86_400, "3.0 years"),
    ],
)  # fmt: skip
def test_times_are_told_in_units_that_suit(seconds: float, text: str) -> None:
    assert plan.duration(seconds) == text


def test_stages_add_up() -> None:
    one, other, both = plan.times([pace("pretrain", 1000, 3.6), pace("train", 2000, 3.6)])
    assert (one.state, other.state) == (
        "1,000 steps of 3.6 seconds: 60 minutes",
        "2,000 steps of 3.6 seconds: 2.0 hours",
    )
    assert both.state == "3.0 hours, as measured here" and not both.note
    *_, shared = plan.times([pace("train", 100_000, 60.0)], ranks=8)
    assert shared.state.startswith("2.3 months on one GPU, at best 8.7 days on 8") and not shared.note
    *_, long = plan.times([pace("train", 1_000_000, 60.0)], ranks=8)
    assert "a plan of 2.9 months: train on more than 8 GPUs" in long.note and not long.fix


def test_memory_that_is_not_there(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", tmp_path, "training.global_batch_size=64", "training.micro_batch_size=16")
    stages = [pace("pretrain", 1, 1, per_image=0.1), pace("train", 1, 1)]
    enough = plan.memory(config, stages, 10 * GIB, "this machine")
    assert enough.state == "a step of train needs about 9.0 GiB, this machine has 10.0 GiB free" and not enough.fix
    assert plan.memory(config, stages, 6 * GIB, "it").fix == "set training.micro_batch_size to 8, or less"
    assert plan.memory(config, stages, GIB, "it").fix == "set a smaller data.image_size or model.base_channels"
    assert plan.memory(config, stages, None, "it").state == "a step of train needs about 9.0 GiB"


def test_a_step_for_which_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> list[Pace]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(plan, "paces", fail)
    (check,) = plan.plan(tiny_config(tmp_path / "run", tmp_path))
    assert check.what == "memory" and "more than this machine has free" in check.state and check.fix
