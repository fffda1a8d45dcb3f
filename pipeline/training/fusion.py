"""Fusion training of E, G and D, METHOD (11) and (12): one discriminator step, one generator step."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.config.schema import LAYERS, STYLE_LAYERS
from pipeline.data.loading.loader import MicroBatch
from pipeline.data.loading.order import Stream, generator
from pipeline.inference import pictures
from pipeline.inference.bundle import Bundle
from pipeline.measures.distances import perceptual_point, represented, represented_distances
from pipeline.measures.effects import effect_matrix
from pipeline.models import lambda_draws, latents, losses
from pipeline.models.autoencoder import FusionAutoencoder, FusionOutput, rolled
from pipeline.models.blocks import BLOCKS
from pipeline.models.discriminator import Discriminator
from pipeline.models.perceptual import PerceptualNetwork
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.context import Setup
from pipeline.training.ema import MovingAverage, calibrate_batch_norm
from pipeline.training.loop import Sums, read_alike, restore

SHOWN_PAIRS, STRIP = 4, 6
"""Held-out pairs in the fusion strip, and images from A to B in each."""


class Inputs(NamedTuple):
    """One micro-batch on the device; every image is A, and the one before it its B."""

    images: Tensor
    """(m, 3, S, S) in [-1, 1]."""
    lambda_: Tensor
    """(m, N) or (m, N, h, w)."""
    position: Tensor
    """(m,) in [0, 1]: where D's gradient is penalised."""


class FusionStage:
    """One step: D minimises E[D(C)] - E[D(I)] + penalty, then E and G minimise (11)."""

    name = "train"

    def __init__(self, setup: Setup, pretrained: Path) -> None:
        config, self.setup, self.runtime = setup.config, setup, setup.runtime
        self.pretrained = pretrained
        self.total_steps = config.training.fusion_steps
        place = self.runtime.place
        # First of all: where its weights are missing, on one rank or all, none is left waiting in a collective.
        self.perceptual = self.runtime.place_frozen(
            self.runtime.ranks.together(lambda: PerceptualNetwork(config.perceptual))
        )
        autoencoder = place(FusionAutoencoder(config.model))
        self.average = MovingAverage(autoencoder, config.training.ema_decay)
        self.critic = place(Discriminator(config.model, config.penalty, config.data.image_size))
        self.runtime.compile(self.perceptual, autoencoder.encoder, autoencoder.generator)
        self.autoencoder = self.runtime.wrap(autoencoder)
        self.discriminator = self.runtime.wrap(self.critic)
        self.optimizers = {
            "autoencoder": self.runtime.optimizer(autoencoder, config.optimizer),
            "discriminator": self.runtime.optimizer(self.critic, config.optimizer),
        }
        self.modules = {**self.average.modules(), "discriminator": self.critic, "perceptual": self.perceptual.scales}
        self.weights, self.layer_weights = config.loss_weights.model_dump(), config.perceptual.layer_weights
        self.flipped_pairs = config.fusion.separation_pairs if self.weights["separation"] else 0
        for ours in losses.NOT_METHODS:
            if not self.weights[ours]:
                del self.weights[ours]
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
        planned = found.state["config"]["training"]["pretrain_steps"]
        wanted = min(planned, self.setup.config.training.pretrain_steps)
        if found.state["stage"] == "pretrain" and found.step < wanted:
            raise UserError(
                f"{found.path}: pre-training stopped at step {found.step} of {wanted}; "
                f"run `pretrain` again to finish it, or set training.pretrain_steps={found.step}"
            )
        restore(found, self.average.modules())
        if self.setup.config.perceptual.feature_scale == "none":
            self.runtime.say(
                "train: perceptual.feature_scale is none: the loss weights must fit the weights' own scale"
            )
        self.perceptual.calibrate(images.to(self.runtime.device) for images in self.setup.calibration)

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        micros = self.inputs(step, batch)
        outputs, terms = self._discriminator_step(micros, step % self.setup.config.penalty.every == 0)
        terms |= self._generator_step(micros, outputs)
        self.average.update(self.setup.config.training.pretrain_steps + step + 1)
        return terms

    def _discriminator_step(
        self, micros: list[Inputs], penalised: bool
    ) -> tuple[list[FusionOutput], dict[str, Tensor]]:
        """Returns the outputs whose graph the generator step may use: with one micro-batch they fit in memory."""
        keep, weight = len(micros) == 1, self.setup.config.penalty.every
        outputs, sums = [], Sums(len(micros))
        for place, micro in enumerate(micros, 1):
            with torch.set_grad_enabled(keep):
                output = self.autoencoder(micro.images, micro.lambda_, self.flipped_pairs if keep else 0)
            if keep:
                outputs.append(output)
            with self.runtime.accumulating(self.discriminator, more=place < len(micros)):
                real, fake, penalty = self.discriminator(micro.images, output.fused.detach(), micro.position, penalised)
                critic = losses.adversarial_critic(real, fake).mean()
                self.runtime.backward((critic + weight * penalty.mean()) / len(micros))
            sums.add({"critic/real": real, "critic/fake": fake, "critic/wasserstein": -critic})
            if penalised:
                sums.add({"loss/penalty": penalty, "loss_weighted/penalty": penalty})
        norm = self.runtime.apply(self.optimizers["discriminator"], "train, discriminator")
        return outputs, {**sums.means(), "gradient_norm/discriminator": norm}

    def _generator_step(self, micros: list[Inputs], outputs: list[FusionOutput]) -> dict[str, Tensor]:
        """D is frozen, and called without its DDP wrapper: nothing of it is averaged here."""
        self.critic.requires_grad_(False)
        sums = Sums(len(micros))
        for place, micro in enumerate(micros, 1):
            with self.runtime.accumulating(self.autoencoder, more=place < len(micros)):
                output = (
                    outputs[place - 1] if outputs else self.autoencoder(micro.images, micro.lambda_, self.flipped_pairs)
                )
                terms, per_layer = self._terms(micro, output)
                total = losses.weighted_total(terms, self.weights)
                self.runtime.backward(total / len(micros))
            sums.add({f"loss/{name}": term for name, term in terms.items()} | per_layer | {"loss/total": total})
            sums.add({"loss/autoencoder": losses.reconstruction(output.reconstruction, micro.images)})
        self.critic.requires_grad_(True)
        norm = self.runtime.apply(self.optimizers["autoencoder"], "train, autoencoder")
        return {**sums.weighted_means(self.weights), "gradient_norm/autoencoder": norm}

    def _terms(self, micro: Inputs, output: FusionOutput) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms of (11), (m,) each, by the names of the weights; and the perceptual ones by layer."""
        images, lambda_, _ = micro
        reconstruction, fused, flipped = output
        assert fused is not None, "fusion training gives a Lambda to every forward"
        with self.runtime.autocast():
            scores = self.critic.score(fused)
            with torch.no_grad():
                features_a = self.perceptual(images)
            if flipped is None:
                features = self.perceptual(fused)
            else:  # at once
                seen = [fused, flipped, reconstruction[-1:], reconstruction[: self.flipped_pairs]]
                parts = [each.split(list(map(len, seen))) for each in self.perceptual(torch.cat(seen))]
                features, of_flips, of_first_b, of_a = map(list, zip(*parts, strict=True))
        content, style = torch.zeros_like(scores), torch.zeros_like(scores)
        per_layer = {}
        owners = latents.layer_lambdas(lambda_, self.owners).unbind(1)
        for layer, weight, feature, feature_a, owner in zip(
            LAYERS, self.layer_weights, features, features_a, owners, strict=True
        ):
            if layer in STYLE_LAYERS:
                by_image = owner.flatten(1).mean(1) if owner.dim() > 1 else owner
                gram_a = losses.gram_matrix(feature_a)
                term = losses.style_of_grams(losses.gram_matrix(feature), gram_a, rolled(gram_a), by_image)
                style = style + weight * term
            else:
                term = losses.content(feature, feature_a, rolled(feature_a), owner)
                content = content + weight * term
            per_layer[f"loss_layer/{layer}"] = term
        # (7) and (9): B' is A' rolled, so over the batch both halves of the sum are alike.
        endpoints = _endpoint_reconstruction(fused, images, lambda_)
        terms = {
            "adversarial": losses.adversarial_generator(scores),
            "content": content,
            "style": style,
            "reconstruction": 2 * losses.reconstruction(reconstruction, images) + endpoints,
            "total_variation": losses.total_variation(fused) + 2 * losses.total_variation(reconstruction),
        }
        if "ssim" in self.weights:
            terms["ssim"] = 2 * (1 - losses.structural_similarity(reconstruction, images))
        if flipped is not None:
            terms["separation"] = self._separation(of_flips, of_first_b, of_a)
            if "path" in self.weights:
                terms["path"] = self._path(of_flips, of_a, features_a)
        return terms, per_layer

    def _separation(self, of_flips: list[Tensor], of_first_b: list[Tensor], of_a: list[Tensor]) -> Tensor:
        """(pairs,), from the features of the flipped images, of B' of the first pair, and of A' of every pair."""
        pairs, layers = self.flipped_pairs, len(LAYERS)
        flipped, first_b, at_a = map(represented, (of_flips, of_first_b, of_a))
        at_b = [torch.cat([first, each[:-1]]) for first, each in zip(first_b, at_a, strict=True)]
        moved = represented_distances(flipped, [each.repeat_interleave(layers, dim=0) for each in at_a])
        return losses.separation(moved.unflatten(0, (pairs, layers)), represented_distances(at_b, at_a))

    def _path(self, of_flips: list[Tensor], of_start: list[Tensor], features_a: list[Tensor]) -> Tensor:
        """(pairs,), from the features of the flipped images, of A' of every pair, where the way starts, and of A."""
        pairs = self.flipped_pairs
        flipped = perceptual_point([each.unflatten(0, (pairs, len(LAYERS))) for each in of_flips])
        start, at_a = perceptual_point(of_start), perceptual_point([each[:pairs] for each in features_a])
        to_a, to_start = (flipped.squared_distance(end[:, None]) for end in (at_a, start))
        return losses.path(to_a, to_start, start.squared_distance(at_a))

    def inputs(self, step: int, batch: list[MicroBatch]) -> list[Inputs]:
        """What `step` works on: images, and the draws of this step."""
        config, runtime = self.setup.config, self.runtime
        size = config.training.global_batch_size
        lambda_ = self._draw(generator(config.seed, Stream.LAMBDA, step), size)
        position = torch.from_numpy(generator(config.seed, Stream.PENALTY, step).random(size, dtype="float32"))
        return [
            Inputs(
                runtime.images(micro),
                runtime.numbers(lambda_[micro.place]),
                runtime.numbers(position[micro.place]),
            )
            for micro in batch
        ]

    def _draw(self, random: np.random.Generator, count: int) -> Tensor:
        config = self.setup.config
        side = config.data.image_size // 2**BLOCKS
        shared = config.fusion.reading == "shared"
        return lambda_draws.draw(random, count, config.model.elements, side, side, config.fusion.mixture, shared)

    def settle(self) -> None:
        device, calibration = self.runtime.device, self.setup.calibration
        lambda_ = self._draw(generator(self.setup.config.seed, Stream.HELD_OUT, 0), sum(map(len, calibration)))
        lambdas = lambda_.split([len(images) for images in calibration])
        pairs = zip(calibration, lambdas, strict=True)
        calibrate_batch_norm(self.average.module, ((i.to(device), lam.to(device)) for i, lam in pairs))

    @torch.no_grad()
    def pictures(self) -> dict[str, Image]:
        from pipeline.inference import charts  # matplotlib is slow to import, and needed here only

        config, images = self.setup.config, self.setup.shown.to(self.runtime.device)
        bundle = Bundle(config, self.average.module.eval())
        pairs = [images[i : i + 2] for i in range(0, min(2 * SHOWN_PAIRS, len(images) - 1), 2)]
        strips = [[a, *pictures.strip(bundle, a, b, STRIP), b] for a, b in pairs]
        effects = effect_matrix(bundle.fuse, self.perceptual, [bundle.encode(images)], bundle.elements)
        self.average.module.train()
        names = [f"element {n}" for n in range(1, bundle.elements + 1)]
        heat_map = charts.heat_map(effects.numpy(), names, LAYERS, "effect of flipping one element")
        return {"fusion_strip": pictures.tile(strips), "effects": heat_map}


def _endpoint_reconstruction(fused: Tensor, images: Tensor, lambda_: Tensor) -> Tensor:
    """R of (7), (m,): ||C - A|| where Lambda is 1 everywhere, ||C - B|| where it is 0 everywhere, else 0."""
    flat = lambda_.flatten(1)
    is_a, is_b = (flat == 1).all(1), (flat == 0).all(1)
    to_a, to_b = losses.reconstruction(fused, images), losses.reconstruction(fused, rolled(images))
    return is_a * to_a + is_b * to_b
