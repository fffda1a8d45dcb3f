"""Fusion training of E, G and D: one discriminator step, one generator step.

Numbers in brackets are the equations of docs/method.md.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.config.schema import CONTENT_LAYERS, LAYERS, STYLE_LAYERS
from pipeline.data.loading.loader import MicroBatch
from pipeline.data.loading.order import Stream, generator
from pipeline.inference import pictures
from pipeline.inference.bundle import Bundle
from pipeline.models import extra_losses, lambda_draws, latents, losses
from pipeline.models.autoencoder import FusionOutput, rolled
from pipeline.models.blocks import BLOCKS
from pipeline.models.discriminator import Discriminator
from pipeline.models.elements import element_labels, element_names
from pipeline.models.extra_losses import EXTRA_TERMS
from pipeline.models.perceptual import PerceptualNetwork
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.context import Context
from pipeline.training.ema import calibrate_batch_norm
from pipeline.training.held_out import fusion_measures
from pipeline.training.resume import read_alike, restore
from pipeline.training.stage import Shown, Sums, latent_noise, new_autoencoder

SHOWN_PAIRS, STRIP, MOST_ELEMENTS = 4, 6, 16
"""Held-out pairs in a picture, images from A to B in a strip, and elements in the grid."""
LEAST = 128
"""Pixels of a face's side in these pictures."""


class Inputs(NamedTuple):
    """One micro-batch on the device; every image is A, and the one before it its B."""

    images: Tensor
    """(m, 3, S, S) in [-1, 1]."""
    lambda_: Tensor
    """(m, N) or (m, N, h, w) in [0, 1]."""
    position: Tensor
    """(m,) in [0, 1]: where on the segment between two images D's gradient is penalised."""
    noise: Tensor | None
    """(m, C, h, w), on the latents."""


class FusionStage:
    """One step: D minimises E[D(C)] - E[D(I)] + penalty, then E and G minimise (11)."""

    name = "train"

    def __init__(self, context: Context, pretrained: Path) -> None:
        config, self.context, self.runtime = context.config, context, context.runtime
        self.pretrained = pretrained
        self.total_steps = config.training.fusion_steps
        # First of all: if its weights are missing on a rank, no other rank is left waiting in a collective.
        perceptual = self.runtime.ranks.together(lambda: PerceptualNetwork(config.perceptual))
        self.perceptual = self.runtime.to_device(perceptual, frozen=True)
        self.runtime.compile(self.perceptual)
        self.average, self.autoencoder = new_autoencoder(context)
        sees = config.fusion.critic
        self.critic = self.runtime.to_device(Discriminator(config.model, config.penalty, config.data.image_size, sees))
        self.discriminator = self.runtime.wrap(self.critic)
        self.optimizers = {
            "autoencoder": self.runtime.optimizing.adam(self.average.trained, config.optimizer),
            "discriminator": self.runtime.optimizing.adam(self.critic, config.optimizer),
        }
        self.modules = {**self.average.modules(), "discriminator": self.critic, "perceptual": self.perceptual.scales}
        weights = config.loss_weights.model_dump()
        self.uses_perceptual = bool(weights["content"] or weights["style"])
        left_out = list(EXTRA_TERMS) if self.uses_perceptual else [*EXTRA_TERMS, "content", "style"]
        self.of_latents = sees == "latents"
        self.draws_fused = not self.of_latents or self.uses_perceptual or weights["total_variation"] > 0
        if not self.draws_fused:
            left_out.append("total_variation")
        self.weights = {name: weight for name, weight in weights.items() if weight or name not in left_out}
        if config.model.preserve_norm:
            self.weights["centre"] = 1.0
        self.layer_weights = config.perceptual.layer_weights
        self.owners = latents.owner_matrix(
            config.fusion.reading, config.model.elements, len(LAYERS), config.fusion.map
        ).to(self.runtime.device)

    def begin(self) -> None:
        ranks = self.runtime.ranks
        found = read_alike(ranks, lambda: checkpoint.find(self.pretrained))
        assert found is not None, "`find` raises"
        ranks.together(lambda: self._start_from(found))
        self.runtime.say(f"train: started from {found.path}")

    def _start_from(self, found: Checkpoint) -> None:
        planned = found.config.training.pretrain_steps
        wanted = min(planned, self.context.config.training.pretrain_steps)
        if found.state["stage"] == "pretrain" and found.step < wanted:
            raise UserError(
                f"{found.path}: pre-training stopped at step {found.step} of {wanted}; "
                f"run `pretrain` again to finish it, or set training.pretrain_steps={found.step}"
            )
        if self.average.decay and not found.module("average"):
            raise UserError(f"{found.path}: was trained without a moving average; set training.ema_decay=0")
        restore(found, self.average.modules())
        if self.context.config.perceptual.feature_scale == "none":
            self.runtime.say("train: perceptual.feature_scale is none: the loss weights must fit unscaled features")
        self.perceptual.calibrate(images.to(self.runtime.device) for images in self.context.calibration)

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        config = self.context.config
        micros = self.inputs(step, batch)
        shared = self._shared_forward(micros)
        terms = self.discriminator_step(micros, shared, penalised=step % config.penalty.every == 0)
        terms |= self.generator_step(micros, shared)
        self.average.update(config.training.pretrain_steps + step + 1)
        return terms

    def discriminator_step(
        self, micros: list[Inputs], shared: FusionOutput | None, *, penalised: bool
    ) -> dict[str, Tensor]:
        """D's side of (3) and (12); the penalty of every n-th step weighs n times as much."""
        sums, every = Sums(len(micros)), self.context.config.penalty.every
        for micro in self.runtime.accumulating(self.discriminator, micros):
            with torch.no_grad():
                output = self._forward(micro) if shared is None else shared
            compared = (each.detach() for each in self._compared(micro, output))
            real, fake, penalty = self.discriminator(*compared, micro.position, penalised)
            critic = losses.adversarial_critic(real, fake).mean()  # (2), negated
            self.runtime.optimizing.backward((critic + every * penalty.mean()) / len(micros))
            sums.add({"critic/real": real, "critic/fake": fake, "critic/wasserstein": -critic})
            if penalised:
                sums.add({"loss/penalty": penalty, "loss_weighted/penalty": penalty})
        norm = self.runtime.optimizing.apply(self.optimizers["discriminator"], "train, discriminator")
        return {**sums.means(), "gradient_norm/discriminator": norm}

    def generator_step(self, micros: list[Inputs], shared: FusionOutput | None) -> dict[str, Tensor]:
        """The side of E and G in (3) and (12). D is frozen, and called without DDP: none of it is averaged here."""
        self.critic.requires_grad_(False)
        sums = Sums(len(micros))
        for micro in self.runtime.accumulating(self.autoencoder, micros):
            output = self._forward(micro) if shared is None else shared
            terms, by_layer = self.terms(micro, output)
            total = losses.weighted_total(terms, self.weights)  # (11)
            self.runtime.optimizing.backward(total / len(micros))
            sums.add({f"loss/{name}": term for name, term in terms.items()} | by_layer | {"loss/total": total})
            sums.add({"loss/autoencoder": losses.reconstruction(output.reconstruction, micro.images)})
        self.critic.requires_grad_(True)
        norm = self.runtime.optimizing.apply(self.optimizers["autoencoder"], "train, autoencoder")
        return {**sums.weighted_means(self.weights), "gradient_norm/autoencoder": norm}

    def _forward(self, micro: Inputs) -> FusionOutput:
        """A' and C of every image (1)."""
        output: FusionOutput = self.autoencoder(micro.images, micro.lambda_, micro.noise, self.draws_fused)
        return output

    def _shared_forward(self, micros: list[Inputs]) -> FusionOutput | None:
        """The forward of E and G that serves both steps: D's needs its images, the generator's its graph.

        Only where there is one micro-batch. The graphs of several would all have to wait in memory until D has made
        its step: then each step computes its own, D's without a graph.
        """
        return self._forward(micros[0]) if len(micros) == 1 else None

    def _compared(self, micro: Inputs, output: FusionOutput) -> tuple[Tensor, Tensor]:
        """What D compares, of faces and of mixes."""
        real, fake = (output.latent, output.mixed) if self.of_latents else (micro.images, output.fused)
        assert real is not None and fake is not None, "there is a Lambda"
        return real, fake

    def terms(self, micro: Inputs, output: FusionOutput) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms of (11), (m,) each, by the names of the weights; and the perceptual ones by layer.

        B is A rolled by one image, so B' is A' rolled: over the batch the two halves of (7) and (9) are alike.
        """
        images, lambda_ = micro.images, micro.lambda_
        again, fused = output.reconstruction, output.fused  # A' and C
        to_a = losses.reconstruction(again, images)
        terms = {
            "adversarial": self._adversarial(*self._compared(micro, output)),  # (2), (3)
            "reconstruction": 2 * to_a + _endpoint_term(to_a, lambda_),  # (7)
        }
        by_layer = dict[str, Tensor]()
        if fused is not None:
            terms["total_variation"] = losses.total_variation(fused) + 2 * losses.total_variation(again)  # (8), (9)
        if fused is not None and self.uses_perceptual:  # P takes a fifth of a step
            by_layer = self._perceptual_terms(fused, images, lambda_)
            terms["content"] = self._sum_of_layers(CONTENT_LAYERS, by_layer)  # (4)
            terms["style"] = self._sum_of_layers(STYLE_LAYERS, by_layer)  # (5), (6)
        if "ssim" in self.weights:  # not the paper's; of A' and of B', which is A' rolled
            terms["ssim"] = 2 * (1 - extra_losses.structural_similarity(again, images))
        if output.off_centre is not None:
            terms["centre"] = output.off_centre
        return terms, {f"loss_layer/{layer}": term for layer, term in by_layer.items()}

    def _adversarial(self, real: Tensor, fake: Tensor) -> Tensor:
        """(m,): what E and G minimise of (2); of latents E moves both sides."""
        with self.runtime.autocast():
            if not self.of_latents:
                return losses.adversarial_generator(self.critic.score(fake))
            return -losses.adversarial_critic(self.critic.score(real), self.critic.score(fake))

    def _features(self, images: Tensor) -> list[Tensor]:
        with self.runtime.autocast():
            features: list[Tensor] = self.perceptual(images)
        return features

    def _perceptual_terms(self, fused: Tensor, images: Tensor, lambda_: Tensor) -> dict[str, Tensor]:
        """Each layer's part of content (4) or style (5) of the first images, (b,): a layer follows its owner's lambda.

        With `fusion.targets: ends` a part is 0 where that lambda is neither 0 nor 1.
        """
        count = min(self.context.config.perceptual.images or len(images), len(images))
        of_c = self._features(fused[:count])
        with torch.no_grad():
            of_b_and_a = self._features(torch.cat([images[-1:], images[:count]]))  # each one's B is the one before
        by_layer = {}
        owners = latents.layer_lambdas(lambda_[:count], self.owners).unbind(1)
        for layer, c, b_and_a, owner in zip(LAYERS, of_c, of_b_and_a, owners, strict=True):
            if layer in STYLE_LAYERS:
                grams = losses.gram_matrix(b_and_a)  # (6)
                owner = owner.flatten(1).mean(1) if owner.dim() > 1 else owner
                term = losses.style_of_grams(losses.gram_matrix(c), grams[1:], grams[:-1], owner)  # (5)
            else:
                term = losses.content(c, b_and_a[1:], b_and_a[:-1], owner)  # (4)
            by_layer[layer] = term * self._asked(owner)
        return by_layer

    def _asked(self, owner: Tensor) -> Tensor:
        """(b,): whether a layer's lambda, (b,) or (b, h, w), is one that its term is meant for, by `fusion.targets`."""
        at_an_end = ((owner == 0) | (owner == 1)).flatten(1).all(1) if owner.dim() > 1 else (owner == 0) | (owner == 1)
        return at_an_end | (self.context.config.fusion.targets == "mixed")

    def _sum_of_layers(self, layers: tuple[str, ...], by_layer: dict[str, Tensor]) -> Tensor:
        weights = dict(zip(LAYERS, self.layer_weights, strict=True))
        return torch.stack([weights[layer] * by_layer[layer] for layer in layers]).sum(dim=0)

    def inputs(self, step: int, batch: list[MicroBatch]) -> list[Inputs]:
        """What `step` works on: images, and the draws of this step."""
        config, runtime = self.context.config, self.runtime
        size = config.training.global_batch_size
        lambda_ = self._draw(generator(config.seed, Stream.LAMBDA, step), size)
        position = torch.from_numpy(generator(config.seed, Stream.PENALTY, step).random(size, dtype="float32"))
        micros = []
        for micro in batch:
            images = runtime.images(micro)
            lam, t = (runtime.send(draw[micro.span]).to(images.dtype) for draw in (lambda_, position))
            micros.append(Inputs(images, lam, t, latent_noise(self.context, step, micro)))
        return micros

    def _draw(self, random: np.random.Generator, count: int) -> Tensor:
        config = self.context.config
        side = config.data.image_size // 2**BLOCKS
        shared = config.fusion.reading == "shared"
        return lambda_draws.draw(random, count, config.model.elements, side, side, config.fusion.mixture, shared)

    def settle(self) -> None:
        device, calibration = self.runtime.device, self.context.calibration
        lambda_ = self._draw(generator(self.context.config.seed, Stream.HELD_OUT, 0), sum(map(len, calibration)))
        lambdas = lambda_.split([len(images) for images in calibration])
        pairs = zip(calibration, lambdas, strict=True)
        calibrate_batch_norm(self.average.module, ((i.to(device), lam.to(device)) for i, lam in pairs))

    @torch.no_grad()
    def show(self) -> Shown:
        from pipeline.inference import charts  # matplotlib is slow to import, and needed here only

        config, images = self.context.config, self.context.shown.to(self.runtime.device)
        bundle = Bundle(config, self.average.module.eval())
        measures, effects = fusion_measures(bundle, self.perceptual, images, config.training.micro_batch_size)
        pairs = [images[i : i + 2] for i in range(0, min(2 * SHOWN_PAIRS, len(images) - 1), 2)]
        strips = [[a, *pictures.strip(bundle, a, b, STRIP), b] for a, b in pairs]
        grid = [[a, *_one_by_one(bundle, a, b), b] for a, b in pairs]
        self.average.module.train()
        names = element_labels(element_names(config.model))
        of_b = [f"{name} of B".replace(" of ", "\nof ") for name in names[:MOST_ELEMENTS]]
        return Shown(
            measures,
            {
                "fusion/strip": pictures.labelled(strips, ["A", *pictures.falling_headings(STRIP), "B"], least=LEAST),
                "fusion/elements": pictures.labelled(grid, ["A", "A'", *of_b, "B'", "B"], least=LEAST),
                "fusion/effects": charts.heat_map(effects.numpy(), names, LAYERS, "effect of flipping one element"),
            },
        )


def _one_by_one(bundle: Bundle, a: Tensor, b: Tensor) -> Tensor:
    """A', then A with one element of B, for each of the first `MOST_ELEMENTS`, and B': (2 + N, 3, S, S)."""
    elements = bundle.elements
    flipped = 1 - torch.eye(elements)[:MOST_ELEMENTS]
    return bundle.fuse(a, b, torch.cat([torch.ones(1, elements), flipped, torch.zeros(1, elements)]))


def _endpoint_term(to_a: Tensor, lambda_: Tensor) -> Tensor:
    """R of (7), (m,), of ||A' - A||, (m,): C is A' where Lambda is 1 everywhere, B' where it is 0 everywhere."""
    flat = lambda_.flatten(1)
    return (flat == 1).all(1) * to_a + (flat == 0).all(1) * rolled(to_a)
