"""Pre-training of E and G as an autoencoder, METHOD (10); beside it, if asked for, structural similarity."""

import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.data.loading.loader import MicroBatch
from pipeline.inference import pictures
from pipeline.models import losses
from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.training.context import Setup
from pipeline.training.ema import MovingAverage, calibrate_batch_norm
from pipeline.training.loop import Sums

SHOWN = 8
"""Held-out faces in the picture of reconstructions."""


class PretrainStage:
    """One step: E and G minimise ||G(E(A)) - A||_1, and by a weight of its own 1 - SSIM."""

    name = "pretrain"

    def __init__(self, setup: Setup) -> None:
        config, self.setup, self.runtime = setup.config, setup, setup.runtime
        self.total_steps = config.training.pretrain_steps
        module = self.runtime.place(FusionAutoencoder(config.model))
        self.average = MovingAverage(module, config.training.ema_decay)
        self.runtime.compile(module.encoder, module.generator)
        self.autoencoder = self.runtime.wrap(module)
        rate = config.optimizer.pretrain_learning_rate
        self.optimizers = {"autoencoder": self.runtime.optimizer(module, config.optimizer, rate)}
        self.modules = self.average.modules()
        self.weights = {"autoencoder": 1.0}
        if config.loss_weights.ssim:
            self.weights["ssim"] = config.loss_weights.ssim / config.loss_weights.reconstruction

    def begin(self) -> None:
        pass

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        sums = Sums(len(batch))
        for place, micro in enumerate(batch, 1):
            images = self.runtime.images(micro)
            with self.runtime.accumulating(self.autoencoder, more=place < len(batch)):
                output = self.autoencoder(images)
                terms = {"autoencoder": losses.reconstruction(output.reconstruction, images)}
                if "ssim" in self.weights:
                    terms["ssim"] = 1 - losses.structural_similarity(output.reconstruction, images)
                total = losses.weighted_total(terms, self.weights)
                self.runtime.backward(total / len(batch))
            sums.add({f"loss/{name}": term for name, term in terms.items()} | {"loss/total": total})
        norm = self.runtime.apply(self.optimizers["autoencoder"], "pretrain")
        self.average.update(step + 1)
        return {**sums.weighted_means(self.weights), "gradient_norm/autoencoder": norm}

    def settle(self) -> None:
        device = self.runtime.device
        calibrate_batch_norm(self.average.module, ((images.to(device),) for images in self.setup.calibration))

    @torch.no_grad()
    def pictures(self) -> dict[str, Image]:
        images = self.setup.shown[:SHOWN]
        model = self.average.module.eval()
        reconstructions = model(images.to(self.runtime.device)).reconstruction
        model.train()
        return {"reconstruction": pictures.tile([list(images), list(reconstructions)])}
