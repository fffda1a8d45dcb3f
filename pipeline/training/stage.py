"""What a stage of training is to the loop, and what both stages are made of."""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from PIL.Image import Image
from torch import Tensor, nn

from pipeline.data.loading.loader import MicroBatch
from pipeline.data.loading.order import Stream, generator
from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.models.blocks import BLOCKS
from pipeline.training.context import Context
from pipeline.training.ema import MovingAverage


class Shown(NamedTuple):
    """How a model does on held-out faces; both by their names in TensorBoard."""

    measures: dict[str, float]
    pictures: dict[str, Image]


class Stage(Protocol):
    """What the loop needs of a stage."""

    name: str
    total_steps: int
    modules: dict[str, nn.Module]
    """What a checkpoint holds of weights and buffers."""
    optimizers: dict[str, AcceleratedOptimizer]

    def begin(self) -> None:
        """Called once on a fresh start, not on resume, by every rank."""

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        """One optimizer step on this rank's micro-batches; scalars by their TensorBoard names. `step` is from 0."""

    def settle(self) -> None:
        """Measure BatchNorm's statistics for the weights to be used: called before saving and showing."""

    def show(self) -> Shown:
        """How it does on held-out faces; called on the main rank only, after `settle`. Draws no random numbers."""


def new_autoencoder(context: Context) -> tuple[MovingAverage, nn.Module]:
    """E and G with random weights: their moving average, which also holds the trained module, and that module wrapped.

    Call the wrapped one in steps: it runs under autocast, in DDP where there are several ranks.
    """
    config, runtime = context.config, context.runtime
    module = runtime.to_device(FusionAutoencoder(config.model))
    average = MovingAverage(module, config.training.ema_decay)
    runtime.compile(module.encoder, module.generator)
    return average, runtime.wrap(module)


def latent_noise(context: Context, step: int, micro: MicroBatch) -> Tensor | None:
    """(m, C, h, w) for a micro-batch: each image's own draw, whatever the ranks and micro-batches are."""
    config = context.config
    amount, side = config.training.latent_noise, config.data.image_size // 2**BLOCKS
    if not amount:
        return None
    shape, first = (16 * config.model.base_channels, side, side), step * config.training.global_batch_size
    draws = [
        generator(config.seed, Stream.NOISE, first + index).standard_normal(shape, dtype="float32")
        for index in range(micro.span.start, micro.span.stop)
    ]
    return amount * context.runtime.send(torch.from_numpy(np.stack(draws)))


class Sums:
    """Means of terms over the micro-batches of a step."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.sums: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().mean()

    def means(self) -> dict[str, Tensor]:
        return {name: value / self.count for name, value in self.sums.items()}

    def weighted_means(self, weights: dict[str, float]) -> dict[str, Tensor]:
        """`means`, and each loss/NAME times its weight as loss_weighted/NAME."""
        means = self.means()
        return means | {f"loss_weighted/{name}": weight * means[f"loss/{name}"] for name, weight in weights.items()}
