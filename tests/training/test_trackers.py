"""Trackers besides TensorBoard, through accelerate's own; stand-ins take the place of their libraries."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from running import Trained, latentfuse, listing, scalars, tiny_arguments

from pipeline.common.errors import UserError
from pipeline.config.schema import Config, TrackingConfig, TrainingConfig
from pipeline.training.runtime import Runtime
from pipeline.training.stage import Shown
from pipeline.training.tracking import Tracker

LIBRARY = """
calls = []
broken = None

class Config:
    def update(self, values, allow_val_change):
        calls.append(("config", values))

class Image:
    def __init__(self, image):
        self.size = image.size

class Run:
    def log(self, values, step):
        if broken == "log":
            raise ConnectionError("no route\\nto host")
        calls.append((step, values))

    def finish(self):
        calls.append("finish")

def init(**options):
    if broken == "init":
        raise ValueError()
    calls.append(("init", options))
    return Run()

config = Config()
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules `wandb` and `trackio` that note their calls."""
    made = {}
    for name in ("wandb", "trackio"):
        path = tmp_path / "libraries" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(LIBRARY)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "libraries"))
    for name in ("wandb", "trackio"):
        made[name] = __import__(name)
        monkeypatch.setitem(sys.modules, name, made[name])
    return made


@pytest.fixture
def runtime() -> Runtime:
    AcceleratorState._reset_state(True)
    return Runtime(TrainingConfig(device="cpu"))


def start(run: Path, runtime: Runtime, *names: Any, step: int = 0) -> Tracker:
    return Tracker(Config(run_dir=run, tracking=TrackingConfig(trackers=list(names))), runtime, "train", step, 10)


def log(tracker: Tracker, step: int) -> None:
    tracker.add({"loss/content": torch.tensor(float(step))}, 8)
    tracker.flush(step, {})


def logged(library: ModuleType, name: str) -> dict[int, Any]:
    steps = [call for call in library.calls if isinstance(call[0], int)]
    return {step: values[name] for step, values in steps if name in values}


def test_numbers_go_to_all_and_pictures_where_they_can(
    tmp_path: Path, runtime: Runtime, libraries: dict[str, Any]
) -> None:
    tracker = start(tmp_path / "run", runtime, "tensorboard", "wandb", "trackio", "wandb")
    for step in (5, 10):
        log(tracker, step)
    tracker.show(Shown({"held_out/SSIM": 0.5}, {"fusion/strip": Image.new("RGB", (9, 6))}), 10)
    tracker.close()
    assert scalars(tmp_path / "run", "train")["loss/content"] == {5: 5.0, 10: 10.0}
    for library in libraries.values():
        assert logged(library, "loss/content") == {5: 5.0, 10: 10.0}
        assert logged(library, "held_out/SSIM") == {10: 0.5}
        kinds = [call[0] for call in library.calls]
        assert kinds.count("init") == 1 and library.calls[-1] == "finish"
        (values,) = [call[1] for call in library.calls if call[0] == "config"]
        assert values["training.fusion_steps"] == 100_000 and values["stage"] == "train"
        assert all(isinstance(value, str | int | float) for value in values.values())
    (picture,) = logged(libraries["wandb"], "fusion/strip")[10]
    assert picture.size == (9, 6) and logged(libraries["trackio"], "fusion/strip") == {}


def test_a_resumed_stage_goes_on_where_it_was(tmp_path: Path, runtime: Runtime, libraries: dict[str, Any]) -> None:
    for run in ("run", "run", "other"):
        start(tmp_path / run, runtime, "wandb", "trackio").close()
    first, again, other = (call[1] for call in libraries["wandb"].calls if call[0] == "init")
    assert first == again and first["resume"] == "allow" and first["id"] != other["id"]
    assert (first["project"], first["name"], first["dir"]) == ("latentfuse", "run train", str(tmp_path / "run"))
    first, again, other = (call[1] for call in libraries["trackio"].calls if call[0] == "init")
    assert first == again and first["resume"] == "allow" and first["name"] != other["name"]


def test_the_environment_names_the_project(
    tmp_path: Path, runtime: Runtime, libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "faces")
    start(tmp_path / "run", runtime, "wandb").close()
    assert libraries["wandb"].calls[0][1]["project"] == "faces"


def test_one_that_cannot_start_ends_the_run_before_a_step(
    tmp_path: Path, runtime: Runtime, libraries: dict[str, Any]
) -> None:
    libraries["wandb"].broken = "init"
    with pytest.raises(UserError, match=r"^tracking.trackers: wandb: ValueError$"):
        start(tmp_path / "run", runtime, "wandb")


def test_one_that_fails_later_is_left_out(
    tmp_path: Path, runtime: Runtime, libraries: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = start(tmp_path / "run", runtime, "wandb", "tensorboard")
    log(tracker, 5)
    libraries["wandb"].broken = "log"
    for step in (6, 7):
        log(tracker, step)
    tracker.close()
    said = [line for line in capsys.readouterr().out.splitlines() if "without it" in line]
    assert said == [r"tracking.trackers: wandb: no route\nto host; training goes on without it"]
    assert logged(libraries["wandb"], "loss/content") == {5: 5.0}
    assert list(scalars(tmp_path / "run", "train")["loss/content"]) == [5, 6, 7]


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        ("[tensorboard, comet_ml]", "tracking.trackers: comet_ml is not installed; pip install comet-ml, or leave"),
        ("[tensorboard, tensorbord]", "tracking.trackers.1: Input should be 'tensorboard', 'wandb'"),
        ("wandb", "tracking.trackers: Input should be a valid list, not 'wandb'"),
    ],
)
def test_one_that_is_not_there_is_one_line_before_training(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trackers: str, message: str
) -> None:
    (tmp_path / "comet_ml").mkdir()  # a folder of that name is not the library
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = tiny_arguments(tmp_path / "run", trained.shards, f"tracking.trackers={trackers}")
    latentfuse("pretrain", *arguments).assert_one_line(message)
    assert not any("events" in name or "checkpoint" in name for name in listing(tmp_path / "run"))


def test_without_trackers_there_are_lines_alone(trained: Trained, tmp_path: Path) -> None:
    arguments = tiny_arguments(tmp_path / "run", trained.shards, "tracking.trackers=[]", "training.pretrain_steps=1")
    result = latentfuse("pretrain", *arguments)
    assert result.code == 0 and "pretrain 1/1" in result.out and "ensor" not in result.out
    assert not any("events" in name for name in listing(tmp_path / "run"))
