"""Going on from a checkpoint: every rank reads the same one, and it must be of the same run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from pipeline.common.errors import UserError
from pipeline.config.load import validate
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.context import Context
from pipeline.training.ranks import Ranks
from pipeline.training.stage import Stage

FIXED = (
    *("seed", "model", "perceptual", "data.image_size", "data.crop", "data.horizontal_flip"),
    *("training.global_batch_size", "training.micro_batch_size", "training.ema_decay"),
    *("fusion.reading", "fusion.map"),
)
"""What a resumed run may not change: it would no longer be the same run."""


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
    ranks.together(lambda: _check_same_run(found, context))
    ranks.together(lambda: restore(found, stage.modules))
    for name, optimizer in stage.optimizers.items():
        _restore_optimizer(optimizer, found.optimizers[name])
    runtime.optimizing.load_scaler_state(found.optimizers["scaler"])
    runtime.optimizing.skipped = found.state["skipped_steps"]
    runtime.say(f"{stage.name}: resumed from {found.path}")
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
        try:
            module.load_state_dict(found.module(name))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{found.path}: the weights of the {name} do not fit: {reason}") from None


def _restore_optimizer(optimizer: AcceleratedOptimizer, state: dict[str, Any]) -> None:
    """With `betas` and `fused` as configured now; the loop sets the learning rate."""
    for group in state["param_groups"]:  # before loading: `fused` decides on which device the counts of steps are kept
        group["fused"] = optimizer.defaults["fused"]
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        group["betas"] = optimizer.defaults["betas"]
    for parameter, moments in optimizer.state.items():  # a fused step wants them in the parameter's memory layout
        for key, value in moments.items():
            if value.shape == parameter.shape:
                moments[key] = torch.empty_like(parameter).copy_(value)


def _check_same_run(found: Checkpoint, context: Context) -> None:
    if found.state["data_hash"] != context.train.content_hash:
        raise UserError(f"{found.path}: was trained on other shards than {context.train.name}; set another run_dir")
    then = validate(found.state["config"], str(found.path)).as_dict()  # with today's defaults where a key is newer
    now = context.config.as_dict()
    for key in FIXED:
        before, after = _look_up(then, key), _look_up(now, key)
        if before != after:
            raise UserError(f"{key}: {after} now, but {before} in {found.path}; change it back or set another run_dir")


def _look_up(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
