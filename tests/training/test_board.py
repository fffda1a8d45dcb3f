"""What TensorBoard reads of a stage: the layout, the configuration, the hyperparameters and results."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import Trained, scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pipeline.config.schema import Config
from pipeline.training.board import RESULTS, Board

STAGES = ("pretrain", "train")


def events(run: Path, stage: str) -> Any:
    return EventAccumulator(str(run / "tensorboard" / stage)).Reload()


def layout(shown: Any) -> Any:
    return Layout.FromString(shown.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])


def hyperparameters(shown: Any, tag: str) -> Any:
    content = shown.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    return HParamsPluginData.FromString(content)


def test_the_fusion_comes_first_and_every_chart_has_lines(trained: Trained) -> None:
    first, second = (layout(events(trained.run, stage)) for stage in STAGES)
    assert first == second, "TensorBoard merges the layouts of stages in their order"
    assert "fusion" in first.category[0].title
    tags = {tag for stage in STAGES for tag in scalars(trained.run, stage)}
    for category in first.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert any(re.match(pattern, tag) for tag in tags), (chart.title, pattern)


def test_the_configuration_is_shown_as_it_is_stored(trained: Trained) -> None:
    shown = events(trained.run, "train").Tensors("2. configuration/text_summary")[-1]
    text = shown.tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines()), "code, in Markdown"
    assert yaml.safe_load(text) == yaml.safe_load((trained.run / "config.yaml").read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_hyperparameters_stand_beside_the_results(trained: Trained, stage: str) -> None:
    shown = events(trained.run, stage)
    start = hyperparameters(shown, "session_start_info").session_start_info.hparams
    assert start["training.fusion_steps"].number_value == 4 and start["stage"].string_value == stage
    assert start["model.warp"].string_value == "False" and "run_dir" not in start
    results = hyperparameters(shown, "experiment").experiment.metric_infos
    assert [each.name.tag for each in results] == list(RESULTS)
    found = [tag for tag in RESULTS if tag in scalars(trained.run, stage)]
    assert found == (list(RESULTS) if stage == "train" else [tag for tag in RESULTS if tag.startswith("held_out/")])
    assert hyperparameters(shown, "session_end_info").session_end_info.status == Status.Value("STATUS_SUCCESS")


def test_a_stage_that_stopped_has_not_ended(tmp_path: Path) -> None:
    board = Board(tmp_path / "tensorboard" / "train", Config(), "train", 0)
    board.close(finished=False)
    assert "_hparams_/session_end_info" not in events(tmp_path, "train").Tags()["tensors"]
