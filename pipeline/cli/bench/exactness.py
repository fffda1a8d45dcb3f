"""A fusion step as configured, beside the same step in float64 without any lever."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.config.schema import SpeedConfig
from pipeline.data.loading.loader import MicroBatch
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage

IMAGES = 8
"""Few: most devices are slow in float64."""


def errors(setup: Context, batch: list[MicroBatch]) -> dict[str, float]:
    """Relative errors of the first fusion step at the initial weights; infinite where a scaled gradient overflowed.

    Args:
        batch: a step's micro-batches; the first images of the first one are used.

    Returns:
        Of every loss term; and of the gradients, the norm of the difference over the norm.
    """
    images, start = batch[0].images[:IMAGES], batch[0].span.start
    few = [MicroBatch(images, slice(start, start + len(images)))]
    stage = FusionStage(setup, setup.config.run_dir)
    with _plain_and_double(setup):
        reference = FusionStage(setup, setup.config.run_dir)
    for theirs, ours in (
        (reference.average.trained, stage.average.trained),
        (reference.critic, stage.critic),
        (reference.perceptual, stage.perceptual),
    ):
        theirs.load_state_dict(ours.state_dict())
    with _plain_and_double(setup):
        wanted = _first_step(reference, few)
    seen = _first_step(stage, few)
    infinite = torch.tensor(torch.inf)
    return {
        name: float((seen.get(name, infinite).double() - value).norm() / value.norm()) for name, value in wanted.items()
    }


@contextmanager
def _plain_and_double(setup: Context) -> Iterator[None]:
    """What is built in this block computes in float64, also under autocast, which leaves float64 as it is."""
    runtime = setup.runtime
    before = runtime.speed, runtime.memory_format, torch.get_default_dtype()
    runtime.speed, runtime.memory_format = SpeedConfig(compile="no"), torch.contiguous_format
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        runtime.speed, runtime.memory_format = before[:2]
        torch.set_default_dtype(before[2])


def _first_step(stage: FusionStage, batch: list[MicroBatch]) -> dict[str, Tensor]:
    """The loss terms, and the gradients as each optimizer takes them, all of a network in one row."""
    seen: dict[str, Tensor] = {}
    for name, optimizer in stage.optimizers.items():

        def keep(adam: torch.optim.Optimizer, *_: object, name: str = name) -> None:
            gradients = [p.grad for group in adam.param_groups for p in group["params"] if p.grad is not None]
            seen[f"gradient/{name}"] = torch.cat([gradient.flatten() for gradient in gradients])

        optimizer.optimizer.register_step_pre_hook(keep)
    terms = stage.step(0, batch)
    return {name: value for name, value in terms.items() if name.startswith("loss/")} | seen
