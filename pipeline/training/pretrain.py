"""Pre-training of E and G as an autoencoder (docs/method.md, eq. 10); beside it, if asked for, SSIM."""

import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.data.loading.loader import MicroBatch
from pipeline.inference import pictures
from pipeline.models import extra_losses, losses
from pipeline.training.context import Context
from pipeline.training.ema import calibrate_batch_norm
from pipeline.training.stage import Sums, new_autoencoder

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
            reconstruction, _, off_centre = self.autoencoder(images)
            terms = {"autoencoder": losses.reconstruction(reconstruction, images)}  # eq. 10
            if "ssim" in self.weights:
                terms["ssim"] = 1 - extra_losses.structural_similarity(reconstruction, images)
            if off_centre is not None:
                terms["centre"] = off_centre
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
    def pictures(self) -> dict[str, Image]:
        images = self.context.shown[:SHOWN]
        model = self.average.module.eval()
        reconstructions = model(images.to(self.runtime.device)).reconstruction
        model.train()
        return {"reconstruction": pictures.tile([list(images), list(reconstructions)])}
