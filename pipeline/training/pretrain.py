"""Pre-training of E and G as an autoencoder (docs/method.md, eq. 10); beside it, if asked for, SSIM."""

import torch
from torch import Tensor

from pipeline.data.loading.loader import MicroBatch
from pipeline.inference import pictures
from pipeline.inference.bundle import Bundle
from pipeline.models import extra_losses, losses
from pipeline.models.autoencoder import FusionOutput
from pipeline.training.context import Context
from pipeline.training.ema import calibrate_batch_norm
from pipeline.training.held_out import reconstruction_measures
from pipeline.training.stage import Shown, Sums, latent_noise, new_autoencoder

SHOWN = 8
"""Held-out faces in the picture of reconstructions."""


class PretrainStage:
    """One step: E and G minimise ||G(E(A)) - A||_1, and by a weight of its own 1 - SSIM."""

    name = "pretrain"

    def __init__(self, context: Context) -> None:
        config, self.context, self.runtime = context.config, context, context.runtime
        self.total_steps = config.training.pretrain_steps
        self.average, self.autoencoder = new_autoencoder(context)
        self.modules = self.average.modules()
        rate = config.optimizer.pretrain_learning_rate
        self.optimizers = {
            "autoencoder": self.runtime.optimizing.adam(self.average.trained, config.optimizer, rate),
        }
        self.weights = {"autoencoder": 1.0}
        if config.loss_weights.ssim:
            self.weights["ssim"] = config.loss_weights.ssim / config.loss_weights.reconstruction
        if config.model.preserve_norm:
            self.weights["centre"] = 1.0

    def begin(self) -> None:
        pass

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        sums = Sums(len(batch))
        for micro in self.runtime.accumulating(self.autoencoder, batch):
            images = self.runtime.images(micro)
            output: FusionOutput = self.autoencoder(images, noise=latent_noise(self.context, step, micro))
            terms = {"autoencoder": losses.reconstruction(output.reconstruction, images)}  # eq. 10
            if "ssim" in self.weights:
                terms["ssim"] = 1 - extra_losses.structural_similarity(output.reconstruction, images)
            if output.off_centre is not None:
                terms["centre"] = output.off_centre
            total = losses.weighted_total(terms, self.weights)
            self.runtime.optimizing.backward(total / len(batch))
            sums.add({f"loss/{name}": term for name, term in terms.items()} | {"loss/total": total})
        norm = self.runtime.optimizing.apply(self.optimizers["autoencoder"], "pretrain")
        self.average.update(step + 1)
        return {**sums.weighted_means(self.weights), "gradient_norm/autoencoder": norm}

    def settle(self) -> None:
        device = self.runtime.device
        calibrate_batch_norm(self.average.module, ((images.to(device),) for images in self.context.calibration))

    @torch.no_grad()
    def show(self) -> Shown:
        images = self.context.shown.to(self.runtime.device)
        bundle = Bundle(self.context.config, self.average.module.eval())
        at_once = self.context.config.training.micro_batch_size
        back = torch.cat([bundle.generate(bundle.encode(some)) for some in images.split(at_once)])
        self.average.module.train()
        picture = pictures.labelled([list(images[:SHOWN]), list(back[:SHOWN])], (), ("A", "A'"))
        return Shown(reconstruction_measures(images, back), {"held_out/reconstruction": picture})
