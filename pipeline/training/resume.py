"""A stage's checkpoints: written beside training, and gone on from by every rank alike."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.common.errors import UserError
from pipeline.inference.weights import difference
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.context import Context
from pipeline.training.optimizing import OptimizerSteps
from pipeline.training.ranks import Ranks
from pipeline.training.stage import Stage

FIXED = (
    *("seed", "model", "perceptual", "data.image_size", "data.crop", "data.horizontal_flip"),
    *("training.global_batch_size", "training.micro_batch_size", "training.ema_decay"),
    *("fusion.reading", "fusion.map"),
)
"""What a resumed run may not change: it would no longer be the same run."""
TOLD = {
    "pretrain": ("training.pretrain_steps", "optimizer", "loss_weights"),
    "train": ("training.fusion_steps", "optimizer", "loss_weights", "penalty", "fusion"),
}
"""What it may change, but says so, by stage: keys and sections."""


def resume(stage: Stage, context: Context) -> int:
    """Put `stage` where its newest checkpoint was, or at its beginning. Returns the steps that are done.

    Raises:
        UserError: if no checkpoint verifies, or it is of another run.
        StoppedElsewhere: then, on other ranks than the main one.
    """
    runtime, ranks = context.runtime, context.runtime.ranks

    def choose() -> Checkpoint | None:
        found, passed_over = checkpoint.newest(checkpoint.folder_of(context.config.run_dir, stage.name))
        for reason in passed_over:
            runtime.say(f"{stage.name}: passed over {reason}")
        return found

    found = read_alike(ranks, choose)
    if found is None:
        with runtime.uncompiled():
            stage.begin()
        return 0
    ranks.together(lambda: _check_same_run(found, stage, context))
    ranks.together(lambda: restore(found, stage.modules))
    ranks.together(lambda: _restore_optimizers(found, stage, runtime.optimizing))
    runtime.say(f"{stage.name}: resumed from {found.path}")
    if changed := _changes(stage.name, found.config.as_dict(), context.config.as_dict()):
        runtime.say(f"{stage.name}: changed from step {found.step} on: {', '.join(changed)}")
    return found.step


def read_alike(ranks: Ranks, choose: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that `choose` finds on the main rank, on every rank; the folder may change meanwhile.

    Raises:
        UserError: if a rank cannot read it, or reads other weights there.
        StoppedElsewhere: then, on other ranks than the main one.
    """
    mine: list[Checkpoint] = []

    def name() -> tuple[str, str] | None:
        mine.extend(filter(None, [choose()]))
        return (str(mine[0].path), mine[0].digest) if mine else None

    chosen = ranks.on_main(name)
    if chosen is None:
        return None

    def read() -> Checkpoint:
        found = mine[0] if mine else checkpoint.load(Path(chosen[0]))
        if found.digest != chosen[1]:
            raise UserError(f"{found.path}: not the weights that rank 0 reads; all ranks must share this folder")
        return found

    return ranks.together(read)


def restore(found: Checkpoint, modules: Mapping[str, nn.Module]) -> None:
    """Load the weights of `modules` from a checkpoint.

    Raises:
        UserError: if they do not fit.
    """
    for name, module in modules.items():
        given = found.module(name)
        if not given:
            raise UserError(f"{found.path}: holds no {name}")
        wanted = module.state_dict()
        if unlike := difference(_shapes(wanted), _shapes(given)):
            raise UserError(f"{found.path}: the weights of the {name} do not fit: it {unlike}")
        module.load_state_dict(given)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _restore_optimizers(found: Checkpoint, stage: Stage, optimizing: OptimizerSteps) -> None:
    """Load what is kept of each parameter; the groups' settings are as configured now."""
    where = found.path / checkpoint.OPTIMIZERS
    for name, optimizer in stage.optimizers.items():
        moments = found.optimizers.get(name, {}).get("state")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if unlike := _unlike_adams(moments, parameters):
            fix = "move the checkpoint away to resume from the one before"
            raise UserError(f"{where}: does not fit the optimizer of the {name}: {unlike}; {fix}")
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, values in optimizer.state.items():  # a fused step wants them in the parameter's memory layout
            for key, value in values.items():
                if value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter).copy_(value)
    scaler, now = found.optimizers.get("scaler", {}), optimizing.scaler_state()
    if now and scaler:
        fit = scaler.keys() == now.keys() and all(type(scaler[key]) is type(now[key]) for key in now)
        if not fit or not all(math.isfinite(value) and value >= 0 for value in scaler.values()):
            raise UserError(f"{where}: the state of the loss scaler is none")
    optimizing.load_scaler_state(scaler)
    optimizing.skipped = found.state["skipped_steps"]


def _unlike_adams(moments: Any, parameters: list[nn.Parameter]) -> str | None:
    """What is wrong with them: a fused step takes shapes on trust, and reads beyond the end of what is shorter.

    Args:
        moments: by the position of the parameter.
    """
    if not isinstance(moments, dict) or not moments.keys() <= set(range(len(parameters))):
        return f"it is not for {len(parameters)} parameters"
    for position, values in moments.items():
        parameter = parameters[position]
        if not isinstance(values, dict) or values.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            return f"parameter {position}: not what Adam keeps"
        for key, value in values.items():
            shape = () if key == "step" else tuple(parameter.shape)
            if not _is_dense(value) or tuple(value.shape) != shape:
                return f"parameter {position}: {key} is not a dense tensor of floats, of shape {shape}"
            if not (torch.isfinite(value) if key == "exp_avg" else value >= 0).all():
                return f"parameter {position}: {key} is negative or not a number"
    return None


def _is_dense(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return False
    return value.layout == torch.strided and value.dtype in (torch.float32, torch.float64)


def _check_same_run(found: Checkpoint, stage: Stage, context: Context) -> None:
    if found.state["stage"] != stage.name:
        raise UserError(f"{found.path}: is of the stage {found.state['stage']}, not {stage.name}; move it away")
    if found.state["data_hash"] != context.train.content_hash:
        raise UserError(f"{found.path}: was trained on other shards than {context.train.name}; set another run_dir")
    then, now = found.config.as_dict(), context.config.as_dict()
    for key in FIXED:
        before, after = _look_up(then, key), _look_up(now, key)
        if before != after:
            raise UserError(f"{key}: {after} now, but {before} in {found.path}; change it back or set another run_dir")


def _changes(stage: str, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """As `optimizer.schedule cosine (was constant)`, for each key of `TOLD` that differs."""
    found = []
    for key in TOLD[stage]:
        before, after = _look_up(then, key), _look_up(now, key)
        if isinstance(after, dict):
            found += [
                f"{key}.{name} {after[name]} (was {before[name]})" for name in after if after[name] != before[name]
            ]
        elif after != before:
            found.append(f"{key} {after} (was {before})")
    return found


def _look_up(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


class CheckpointWriter:
    """Every rank has one; the main rank writes, one checkpoint at a time, in a thread of its own.

    A step that saves waits only for the copy to host memory.
    """

    def __init__(self, stage: Stage, context: Context, step: int) -> None:
        self.stage, self.context = stage, context
        self.saved = step
        """The step of the newest checkpoint, 0 if there is none."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int) -> None:
        """Begin to write the weights as they are, once the last write is done. With `asynchronous_saves` off, finish.

        Raises:
            UserError, StoppedElsewhere: as `finish`.
        """
        # `exception` waits; if the last write failed, this one is left out: `failure` or `finish` tells.
        if self.context.runtime.ranks.is_main and (self._writing is None or self._writing.exception() is None):
            self._writing = self._thread.submit(self._write, step, *self._state(step))
        if not self.context.config.tracking.asynchronous_saves:
            self.finish()
        self.saved = step

    @property
    def failure(self) -> Exception | None:
        """Why the last write failed, told once, for the ranks' next agreement. A bug's error is raised."""
        if self._writing is None or not self._writing.done():
            return None
        try:
            self._finish()
        except (UserError, OSError) as error:
            return error
        return None

    def finish(self) -> None:
        """Wait until all is written. Every rank calls it, and all stop at a failure.

        Raises:
            UserError: what it failed with, on the main rank.
            StoppedElsewhere: then, on the others.
        """
        self.context.runtime.ranks.on_main(self._finish)

    def close(self) -> None:
        """Wait for what is being written, whether or not it fails."""
        self._thread.shutdown()

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _state(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
        """Weights, optimizers and the rest, in host memory."""
        stage, config, optimizing = self.stage, self.context.config, self.context.runtime.optimizing
        weights = {f"{name}.{key}": value for name, m in stage.modules.items() for key, value in m.state_dict().items()}
        optimizers = {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()}
        state = {
            "stage": stage.name,
            "images_seen": step * config.training.global_batch_size,
            "config": config.as_dict(),
            "data_hash": self.context.train.content_hash,
            "skipped_steps": optimizing.skipped,
        }
        return _on_host(weights), _on_host(optimizers) | {"scaler": optimizing.scaler_state()}, state

    def _write(self, step: int, weights: dict[str, Tensor], optimizers: dict[str, Any], state: dict[str, Any]) -> None:
        config = self.context.config
        folder, keep = checkpoint.folder_of(config.run_dir, self.stage.name), config.tracking.keep_checkpoints
        path = checkpoint.save(folder, step, weights, optimizers, state, keep)
        self.context.runtime.say(f"{self.stage.name}: saved {path}")


def _on_host(state: Any) -> Any:
    """A copy of a nested state, its tensors in host memory: training goes on and changes the originals."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_on_host(value) for value in state)
    return state
