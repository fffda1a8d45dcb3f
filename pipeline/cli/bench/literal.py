"""The step that METHOD describes, coded as it reads: what ours is measured against.

A and B are encoded separately, A', B' and C generated separately, the perceptual network sees A, B and C, Adam takes
its steps parameter by parameter, D sees one batch at a time, and every term is read back at every step.
"""

import torch
from torch import Tensor, nn

from pipeline.config.schema import LAYERS, STYLE_LAYERS
from pipeline.data.loading.loader import MicroBatch
from pipeline.models import losses
from pipeline.models.extra_losses import EXTRA_TERMS
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage


class LiteralStage:
    """One step on two batches of pairs, A and B; the networks are those of `FusionStage`, on one process."""

    name = "literal"

    def __init__(self, setup: Context) -> None:
        self.setup, self.fusion = setup, FusionStage(setup, setup.config.run_dir)
        self.model, self.critic = self.fusion.average.trained, self.fusion.critic
        plain = setup.config.optimizer.model_copy(update={"fused": False})
        self.optimizers = {
            "autoencoder": setup.runtime.optimizing.adam(self.model, plain),
            "discriminator": setup.runtime.optimizing.adam(self.critic, plain),
        }
        self.weights = setup.config.loss_weights.model_dump(exclude=set(EXTRA_TERMS))

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        """On the first micro-batch as A and, in another order, as B."""
        runtime = self.setup.runtime
        a, lambda_, position = self.fusion.inputs(step, batch[:1])[0]
        b = a.flip(0)
        with runtime.autocast():
            z_a, z_b = self.model.encoder(a), self.model.encoder(b)
            fused = self.model.generator(self.model.mix(z_a, z_b, lambda_))
            again = self.model.generator(z_a), self.model.generator(z_b)
            real, fake = self.critic.score(a), self.critic.score(fused.detach())
            penalty = self.critic.penalty_of(a, fused.detach(), position)
        critic = losses.adversarial_critic(real, fake).mean() + penalty.mean()
        self._apply("discriminator", self.critic, critic)
        with runtime.autocast():
            scores = self.critic.score(fused)
            with torch.no_grad():
                of_a, of_b = self.fusion.perceptual(a), self.fusion.perceptual(b)
            of_c = self.fusion.perceptual(fused)
        perceptual = {"style": torch.zeros_like(scores), "content": torch.zeros_like(scores)}
        layers = zip(LAYERS, self.fusion.layer_weights, of_c, of_a, of_b, strict=True)
        for number, (layer, weight, *features) in enumerate(layers):
            kind = "style" if layer in STYLE_LAYERS else "content"
            perceptual[kind] = perceptual[kind] + weight * getattr(losses, kind)(*features, lambda_[:, number])
        terms = {
            "adversarial": losses.adversarial_generator(scores),
            **perceptual,
            "reconstruction": losses.reconstruction(again[0], a) + losses.reconstruction(again[1], b),
            "total_variation": sum((losses.total_variation(each) for each in again), losses.total_variation(fused)),
        }
        self._apply("autoencoder", self.model, losses.weighted_total(terms, self.weights))
        self.critic.zero_grad()
        told = {name: term.mean() for name, term in terms.items()}
        assert all(value.isfinite() for value in told.values()), "random weights and images give finite terms"
        return told

    def _apply(self, name: str, module: nn.Module, loss: Tensor) -> None:
        self.setup.runtime.optimizing.backward(loss)
        self.optimizers[name].step()
        module.zero_grad()
