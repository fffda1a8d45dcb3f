"""The pace of a stage, reckoned from a few images, is that of whole batches; nothing is left behind."""

from pathlib import Path

import pytest
from running import listing, new_runtime, tiny_config

from pipeline.cli.bench import pace, step
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage


def test_a_line_through_two_measurements() -> None:
    line = pace.Line.through((2, 5.0), (4, 6.0))
    assert (line.fixed, line.per_image, line.at(16)) == (4.0, 0.5, 12.0)
    assert pace.Line.through((2, 5.0), (4, 4.0)).at(16) == 4.0, "more images never take less"
    assert pace.Line.through((2, 5.0), (2, 5.0)).at(2) == 5.0


def test_both_stages_have_their_steps_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    sizes = ("training.global_batch_size=32", "training.micro_batch_size=8", "training.fusion_steps=7")
    config = tiny_config(tmp_path / "run", tmp_path / "nowhere", *sizes, "penalty.every=3", "model.base_channels=4")
    before = listing(tmp_path)
    pretrain, train = pace.paces(config)
    assert listing(tmp_path) == before, "no data is read, nothing is written"
    assert [(each.stage, each.steps) for each in (pretrain, train)] == [("pretrain", 4), ("train", 7)]
    assert 0 < pretrain.seconds_per_step < train.seconds_per_step
    context = Context(config, new_runtime(config), None, None)  # type: ignore[arg-type]  # no images are read
    batch = step.random_batch(context.order, 32)
    _, _, counted = step.count(lambda: FusionStage(context, tmp_path), context, batch)
    assert train.peak_bytes.at(8) == pytest.approx(counted, rel=0.3)
    assert train.peak_bytes.at(16) > train.peak_bytes.at(8) > pretrain.peak_bytes.at(8) > pretrain.peak_bytes.fixed > 0


@pytest.mark.gpu
def test_on_a_gpu_a_whole_micro_batch_is_measured(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", tmp_path / "nowhere", "training.device=cuda")
    for each in pace.paces(config):
        assert each.seconds_per_step > 0 and each.peak_bytes.at(8) > each.peak_bytes.at(4) > 0
