"""What TensorBoard and the terminal show."""

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from running import file_size_limit, scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.common.errors import UserError
from pipeline.config.schema import Config, TrainingConfig
from pipeline.training.runtime import Runtime
from pipeline.training.stage import Shown
from pipeline.training.status import Status
from pipeline.training.tracking import Tracker


@pytest.fixture
def runtime() -> Runtime:
    AcceleratorState._reset_state(True)
    return Runtime(TrainingConfig(device="cpu"))


def new_tracker(folder: Path, runtime: Runtime, step: int = 0) -> Tracker:
    return Tracker(Config(run_dir=folder), runtime, "train", step, 10)


def test_means_over_the_steps_since_the_last_line(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = new_tracker(tmp_path, runtime)
    runtime.optimizing.skipped = 2
    for value in (1.0, 2.0, 6.0):
        terms = {"loss/total": value, "critic/real": -value, "loss/reconstruction": value}
        tracker.add({name: torch.tensor(each) for name, each in terms.items()}, 8)
    means = tracker.flush(3, {"learning_rate/autoencoder": 0.125})
    assert means["loss/total"] == 3 and means["critic/real"] == -3
    line = capsys.readouterr().out
    assert line.startswith("train 3/10   ") and " left  " in line and "rate 1.2e-01" in line
    assert "wasserstein" not in line and "reconstruction" in line
    tracker.add({"loss/total": torch.tensor(5.0)}, 8)
    tracker.flush(4, {})
    tracker.close()
    shown = scalars(tmp_path, "train")
    assert shown["loss/total"] == {3: 3.0, 4: 5.0} and shown["critic/real"] == {3: -3.0}
    assert shown["learning_rate/autoencoder"] == {3: 0.125}
    assert shown["amp/skipped_steps"][3] == 2 and "amp/loss_scale" not in shown, "no half precision, but two skipped"
    assert shown["speed/images_per_second"][3] > 0


def test_the_loss_scale_is_shown_under_fp16_alone(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = new_tracker(tmp_path, runtime)
    for step, scaler in ((1, None), (2, torch.GradScaler("cpu", init_scale=8.0))):
        if scaler is not None:
            scaler.scale(torch.ones(1))  # it makes its scale at the first loss
        monkeypatch.setattr(runtime.accelerator, "scaler", scaler)
        tracker.add({"loss/total": torch.tensor(1.0)}, 8)
        tracker.flush(step, {})
    tracker.close()
    shown = scalars(tmp_path, "train")
    assert shown["amp/loss_scale"] == {2: 8.0} and shown["amp/skipped_steps"] == {2: 0.0}


def test_the_status_tells_how_far_a_run_is(tmp_path: Path, runtime: Runtime) -> None:
    runtime.status = Status(tmp_path / "status.json")
    tracker = new_tracker(tmp_path, runtime)
    with runtime.status:
        for _ in range(4):
            tracker.add({"loss/total": torch.tensor(1.0)}, 8)
        tracker.saved = 2
        tracker.flush(4, {})
        told = json.loads((tmp_path / "status.json").read_text())
        assert told["state"] == "running" and (told["stage"], told["step"], told["total"]) == ("train", 4, 10)
        assert told["saved_step"] == 2
        assert told["seconds_left"] == pytest.approx(6 * 8 / told["images_per_second"], abs=1)
    tracker.close()
    ended = json.loads((tmp_path / "status.json").read_text())
    assert ended == told | {"state": "finished", "exit_code": 0}


def test_time_waiting_for_data_is_a_share(tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    tracker = new_tracker(tmp_path, runtime)
    with tracker.waiting():
        now[0] += 1
    tracker.add({"loss/total": torch.tensor(1.0)}, 8)
    now[0] += 3
    means = tracker.flush(1, {})
    tracker.close()
    assert means["speed/data_wait_share"] == 0.25 and means["speed/images_per_second"] == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_is_left_out_of_the_mean(tmp_path: Path, runtime: Runtime, value: float) -> None:
    tracker = new_tracker(tmp_path, runtime)
    for style in (value, 2.0, 4.0):
        tracker.add({"loss/style": torch.tensor(style), "loss/content": torch.tensor(value)}, 8)
    means = tracker.flush(7, {})
    tracker.close()
    assert means["loss/style"] == 3 and math.isnan(means["loss/content"])


def test_a_resumed_run_hides_the_steps_that_it_goes_back_behind(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first, steps, value in ((0, range(1, 8), 1.0), (3, range(4, 6), 2.0)):
        # Event files are read by their names, which hold the second: a resumed run is always in a later one.
        monkeypatch.setattr("time.time", lambda first=first: 1e9 + first)
        tracker = new_tracker(tmp_path, runtime, first)
        for step in steps:
            tracker.add({"loss/total": torch.tensor(value)}, 8)
            tracker.flush(step, {})
        tracker.close()
    assert scalars(tmp_path, "train")["loss/total"] == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2}


def test_a_picture_is_shown_as_it_is(tmp_path: Path, runtime: Runtime) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    tracker = new_tracker(tmp_path, runtime)
    tracker.show(Shown({"held_out/SSIM": 0.5}, {"strip": Image.fromarray(pixels)}), 5)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "train")).Reload()
    (shown,) = events.Images("strip")
    assert (shown.step, shown.width, shown.height) == (5, 9, 6)
    (tmp_path / "shown.png").write_bytes(shown.encoded_image_string)
    with Image.open(tmp_path / "shown.png") as picture:
        assert (np.asarray(picture.convert("RGB")) == pixels).all()


def test_a_full_disk_is_one_line(tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = new_tracker(tmp_path, runtime)
    with file_size_limit(200):
        tracker.add({f"loss/{name}": torch.tensor(1.0) for name in "abcdefghij"}, 8)
        with pytest.raises(UserError, match="tensorboard/train: File too large"):
            tracker.flush(1, {})
        for thread in threading.enumerate():
            if type(thread).__name__ == "_AsyncWriterThread" and thread.exception:  # type: ignore[attr-defined]
                thread.join(5)
    assert "Traceback" not in capsys.readouterr().err


def test_the_writers_thread_keeps_disk_errors_to_itself(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    new_tracker(tmp_path, runtime).close()
    for error in (OSError("No space left on device"), ValueError("a bug")):
        threading.excepthook(threading.ExceptHookArgs((type(error), error, None, None)))
    shown = capsys.readouterr().err
    assert "a bug" in shown and "No space" not in shown
