"""What is known of a step that could not be applied, in a file for each rank."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common import files
from pipeline.data.loading.loader import MicroBatch
from pipeline.training.context import Context
from pipeline.training.stage import Stage


def describe(stage: Stage, context: Context, step: int, batch: list[MicroBatch], terms: Mapping[str, Tensor]) -> Path:
    """Write `not-finite-step-N/rankNNNN.json` with terms, gradients, weights and images; returns the folder."""
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
