"""The loop both stages run in: resume, step, log, show, save, stop."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate.optimizer import AcceleratedOptimizer
from PIL.Image import Image
from torch import Tensor, nn

from pipeline import files
from pipeline.config import Config, dump
from pipeline.data.loader import FaceImages, MicroBatch, micro_batches
from pipeline.data.order import Order
from pipeline.errors import Interrupted, UserError
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.runtime import Runtime
from pipeline.training.tracking import Tracker

CALIBRATION_IMAGES = 256
FIXED = (
    *("seed", "model", "perceptual", "data.image_size", "data.crop", "data.horizontal_flip"),
    *("training.global_batch_size", "training.micro_batch_size", "training.ema_decay"),
    *("fusion.reading", "fusion.map"),
)
"""What a resumed run may not change: it would no longer be the same run."""


class Stage(Protocol):
    """What the loop needs of a stage."""

    name: str
    total_steps: int
    modules: dict[str, nn.Module]
    """What a checkpoint holds of weights and buffers."""
    optimizers: dict[str, AcceleratedOptimizer]

    def begin(self) -> None:
        """Called once on a fresh start, not on resume."""

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        """One optimizer step on this rank's micro-batches; scalars by their TensorBoard names. `step` is from 0."""

    def settle(self) -> None:
        """Make the weights for use ready for use: called before saving and showing."""

    def pictures(self) -> dict[str, Image]:
        """What TensorBoard shows; called on the main rank only, after `settle`."""


@dataclass(frozen=True)
class Setup:
    """What a stage and the loop work on."""

    config: Config
    runtime: Runtime
    train: FaceImages
    held_out: FaceImages
    data_hash: str
    """Of the training shards; a resumed run must see the same."""

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Micro-batches (m, 3, S, S) in [-1, 1] on which BatchNorm and feature scales are measured: always the same."""
        first = replace(self.order, rank=0, world_size=1)
        wanted = -(-CALIBRATION_IMAGES // first.micro_batch_size)
        indices = np.concatenate([first.indices(s) for s in range(-(-CALIBRATION_IMAGES // first.global_batch_size))])
        chunks = np.split(indices[: wanted * first.micro_batch_size], wanted)
        return [self.train.load(chunk.tolist()) for chunk in chunks]

    @property
    def order(self) -> Order:
        training = self.config.training
        return Order(
            count=len(self.train),
            seed=self.config.seed,
            global_batch_size=training.global_batch_size,
            micro_batch_size=training.micro_batch_size,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
        )


def run(stage: Stage, setup: Setup) -> None:
    """Train `stage` from its newest checkpoint, or from its beginning, to its last step.

    Raises:
        Interrupted: after a signal, once the step is saved.
        UserError: if the run cannot go on.
    """
    runtime, tracking, folder = setup.runtime, setup.config.tracking, checkpoint_folder(setup.config, stage.name)
    first = _resume(stage, setup, folder)
    if first >= stage.total_steps:
        runtime.say(f"{stage.name}: already finished at step {first} ({folder})")
        return
    if runtime.is_main:  # only now: a configuration that is refused leaves the run as it was
        files.write_text(setup.config.run_dir / "config.yaml", dump(setup.config))
    tracker = Tracker(setup.config.run_dir / "tensorboard" / stage.name, runtime, stage.name, first, stage.total_steps)
    batches = micro_batches(setup.train, setup.order, first, stage.total_steps)
    runtime.listen()
    try:
        for step in range(first + 1, stage.total_steps + 1):  # `step` steps are done once the body is through
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            tracker.add(stage.step(step - 1, batch), setup.config.training.global_batch_size, waited)
            stop = runtime.stop_signal()
            last = bool(stop) or step == stage.total_steps
            save = last or step % tracking.checkpoint_every == 0
            show = step == stage.total_steps or step % tracking.image_every == 0
            if save or step == 1 or step % tracking.log_every == 0:
                tracker.flush(step, _learning_rates(stage))  # before saving: it refuses what is not finite
            if save or show:
                stage.settle()
            if show and runtime.is_main:
                for name, picture in stage.pictures().items():
                    tracker.picture(name, picture, step)
            if save:
                _save(stage, setup, folder, step)
            if stop:
                raise Interrupted(stop)
    finally:
        batches.close()
        tracker.close()
        runtime.stop_listening()


def checkpoint_folder(config: Config, stage: str) -> Path:
    return config.run_dir / stage / "checkpoints"


def _learning_rates(stage: Stage) -> dict[str, float]:
    return {f"learning_rate/{name}": o.param_groups[0]["lr"] for name, o in stage.optimizers.items()}


def _save(stage: Stage, setup: Setup, folder: Path, step: int) -> None:
    runtime = setup.runtime
    if runtime.is_main:
        weights = {
            f"{name}.{key}": value
            for name, module in stage.modules.items()
            for key, value in module.state_dict().items()
        }
        optimizers = {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()}
        state = {
            "stage": stage.name,
            "images_seen": step * setup.config.training.global_batch_size,
            "config": setup.config.as_dict(),
            "data_hash": setup.data_hash,
            "skipped_steps": runtime.skipped_steps,
        }
        optimizers["scaler"] = runtime.scaler_state()
        path = checkpoint.save(folder, step, weights, optimizers, state, setup.config.tracking.keep_checkpoints)
        runtime.say(f"{stage.name}: saved {path}")
    runtime.wait()


def _resume(stage: Stage, setup: Setup, folder: Path) -> int:
    found, passed_over = checkpoint.newest(folder)
    for reason in passed_over:
        setup.runtime.say(f"{stage.name}: passed over {reason}")
    if found is None:
        stage.begin()
        return 0
    _check_same_run(found, setup)
    restore(found, stage.modules)
    for name, optimizer in stage.optimizers.items():
        optimizer.load_state_dict(found.optimizers[name])
        for group in optimizer.param_groups:  # as configured now, not then
            group.update({key: optimizer.defaults[key] for key in ("lr", "betas")})
    setup.runtime.load_scaler_state(found.optimizers["scaler"])
    setup.runtime.skipped_steps = found.state["skipped_steps"]
    setup.runtime.say(f"{stage.name}: resumed from {found.path}")
    return found.step


def restore(found: Checkpoint, modules: Mapping[str, nn.Module]) -> None:
    """Load the weights of `modules` from a checkpoint.

    Raises:
        UserError: if they do not fit.
    """
    for name, module in modules.items():
        try:
            module.load_state_dict(found.module(name))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{found.path}: the weights of the {name} do not fit: {reason}") from None


def _check_same_run(found: Checkpoint, setup: Setup) -> None:
    if found.state["data_hash"] != setup.data_hash:
        shards = setup.train.reader.folder
        raise UserError(f"{found.path}: was trained on other shards than {shards}; set another run_dir")
    then, now = found.state["config"], setup.config.as_dict()
    for key in FIXED:
        before, after = _look_up(then, key), _look_up(now, key)
        if before != after:
            raise UserError(f"{key}: {after} now, but {before} in {found.path}; change it back or set another run_dir")


def _look_up(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
