"""The weights that are used after training: a moving average, with BatchNorm's statistics measured anew."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.models.autoencoder import FusionAutoencoder


class MovingAverage:
    """Exponential moving average of the parameters of E and G; `module` is the one to use.

    The decay grows as (1 + step) / (10 + step) up to `decay`, so that the random start is soon forgotten.
    A decay of 0 means no average: `module` is then the trained module itself.
    """

    def __init__(self, trained: FusionAutoencoder, decay: float) -> None:
        self.trained, self.decay = trained, decay
        self.module = copy.deepcopy(trained).requires_grad_(False) if decay else trained

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the trained parameters after `step` steps, those of pre-training included."""
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            for average, trained in zip(self.module.parameters(), self.trained.parameters(), strict=True):
                average.lerp_(trained, 1 - decay)

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds of E and G."""
        modules: dict[str, nn.Module] = {"autoencoder": self.trained}
        return modules | {"average": self.module} if self.decay else modules


@torch.no_grad()
def calibrate_batch_norm(module: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Set the running statistics of every BatchNorm to their mean over `batches`, at the present weights.

    The statistics that training leaves behind depend on the number of ranks, and mix those of many earlier weights.

    Args:
        batches: arguments of the module's forward.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not norms:
        return
    momenta, training = [layer.momentum for layer in norms], module.training
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean
    module.train()
    for arguments in batches:
        module(*arguments)
    module.train(training)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
