"""What training leaves on disk besides TensorBoard: checkpoints, and what is known of a step that went wrong."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common import files
from pipeline.data.loading.loader import MicroBatch
from pipeline.training import checkpoint
from pipeline.training.checkpoint_writer import CheckpointWriter, on_host
from pipeline.training.context import Context
from pipeline.training.stage import Stage


class Saver:
    """The checkpoints of a stage. Every rank has one; the main rank writes."""

    def __init__(self, stage: Stage, context: Context, step: int) -> None:
        self.stage, self.context = stage, context
        self.saved = step
        """The step of the newest checkpoint, 0 if there is none."""
        self._writer = CheckpointWriter(context.runtime.ranks)

    @property
    def failure(self) -> Exception | None:
        """Why the last checkpoint could not be written, told once."""
        return self._writer.failure

    def save(self, step: int) -> None:
        """Begin to write, with the weights as they are; or write, unless `asynchronous_saves`. After `settle`.

        Raises:
            UserError, StoppedElsewhere: as `finish`.
        """
        stage, runtime, config = self.stage, self.context.runtime, self.context.config
        if runtime.ranks.is_main:
            weights = on_host(
                {
                    f"{name}.{key}": value
                    for name, module in stage.modules.items()
                    for key, value in module.state_dict().items()
                }
            )
            optimizers = on_host({name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()})
            optimizers["scaler"] = runtime.optimizing.scaler_state()
            state = {
                "stage": stage.name,
                "images_seen": step * config.training.global_batch_size,
                "config": config.as_dict(),
                "data_hash": self.context.train.content_hash,
                "skipped_steps": runtime.optimizing.skipped,
            }
            folder, keep = checkpoint.folder_of(config.run_dir, stage.name), config.tracking.keep_checkpoints

            def write() -> None:
                path = checkpoint.save(folder, step, weights, optimizers, state, keep)
                runtime.say(f"{stage.name}: saved {path}")

            self._writer.start(write)
        if not config.tracking.asynchronous_saves:
            self.finish()
        self.saved = step

    def finish(self) -> None:
        """Wait until all is written; a failure on the main rank stops all.

        Raises:
            UserError: what it failed with, on the main rank.
            StoppedElsewhere: then, on the others.
        """
        self._writer.finish()

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it."""
        self._writer.close()


def dump(stage: Stage, context: Context, step: int, batch: list[MicroBatch], terms: Mapping[str, Tensor]) -> Path:
    """What this rank knows of a step that could not be applied; returns the folder."""
    optimizing, rank = context.runtime.optimizing, context.runtime.ranks.rank
    folder = context.config.run_dir / stage.name / f"not-finite-step-{step:08d}"
    values = {name: float(term) for name, term in terms.items()}
    images = torch.cat([micro.images for micro in batch]).float()
    parameters = {
        f"{name}.{key}": value.detach()
        for name, module in stage.modules.items()
        for key, value in module.named_parameters()
    }
    known = {
        "step": step,
        "rank": rank,
        "reason": optimizing.failure,
        "terms": {name: value if math.isfinite(value) else str(value) for name, value in values.items()},
        "terms_not_finite": [name for name, value in values.items() if not math.isfinite(value)],
        "gradients_not_finite": optimizing.bad_gradients,
        "parameters_not_finite": [name for name, value in parameters.items() if not value.isfinite().all()],
        "largest_parameters": {name: float(value.abs().nan_to_num().max()) for name, value in parameters.items()},
        "batch": [key for micro in batch for key in micro.keys],
        "images": {name: float(getattr(images, name)()) for name in ("min", "max", "mean", "std")},
        "loss_scale": optimizing.loss_scale,
        "skipped_steps": optimizing.skipped,
    }
    with suppress(OSError):  # the run stops for a better reason
        files.write_json(folder / f"rank{rank:04d}.json", known)
    return folder
