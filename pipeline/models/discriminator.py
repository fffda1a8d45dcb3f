"""Discriminator D with its gradient penalty (docs/method.md, eq. 2)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config.schema import ModelConfig, PenaltyConfig
from pipeline.models import blocks, losses


class DiscriminatorOutput(NamedTuple):
    """Per image, (B,) each."""

    real: Tensor
    fake: Tensor
    penalty: Tensor


class Discriminator(nn.Module):
    """D: of images five blocks as E, of latents two linear layers; then one linear output without sigmoid.

    ONE forward scores real and fake and computes the penalty, so that one DDP forward meets one backward.
    "Images" below are what it sees: (B, 3, H, W) in [-1, 1], or latents (B, c, h, w).
    """

    def __init__(
        self,
        config: ModelConfig,
        penalty: PenaltyConfig,
        image_size: int,
        sees: Literal["images", "latents"] = "images",
    ) -> None:
        super().__init__()
        self.penalty = penalty
        channels, side = blocks.widths(config.base_channels), image_size // 2**blocks.BLOCKS
        if sees == "images":
            self.couples_samples = config.discriminator_norm == "batch"
            self.body = blocks.down_stack(channels, config.kernel_size, config.discriminator_norm)
            width = channels[-1] * side * side
        else:
            self.couples_samples = False
            seen = channels[-1] - config.elements * config.preserve_norm  # G has used up the channels of norms
            first, width = 2 * channels[-1], channels[-1]
            self.body = nn.Sequential(
                *(nn.Flatten(), nn.Linear(seen * side * side, first), nn.LeakyReLU(0.2)),
                *(nn.Linear(first, width), nn.LeakyReLU(0.2)),
            )
        self.output = nn.Linear(width, 1)
        with torch.no_grad():
            self.output.weight.mul_(config.discriminator_output_gain)

    def score(self, images: Tensor) -> Tensor:
        """Images -> (B,)."""
        scores: Tensor = self.output(self.body(images).flatten(1))
        return scores.squeeze(1)

    def forward(self, real: Tensor, fake: Tensor, position: Tensor, penalised: bool = True) -> DiscriminatorOutput:
        """Scores and penalty.

        Args:
            real, fake: images, without gradient.
            position: (B,) in [0, 1], where on the segment from fake to real the penalty is taken (`interpolate`).
            penalised: False leaves the penalty out: zeros.
        """
        if self.couples_samples:
            of_real, of_fake = self.score(real), self.score(fake)
        else:  # one pass over the large weights of the last blocks
            of_real, of_fake = self.score(torch.cat([real, fake])).chunk(2)
        penalty = self.penalty_of(real, fake, position) if penalised else torch.zeros_like(of_real)
        return DiscriminatorOutput(of_real, of_fake, penalty)

    def penalty_of(self, real: Tensor, fake: Tensor, position: Tensor) -> Tensor:
        """k E_x ||grad_x D(x)||^p, (B,), in fp32 outside autocast: half precision loses the second derivative."""
        with torch.autocast(real.device.type, enabled=False), torch.enable_grad():
            real, fake = losses.wide(real), losses.wide(fake)
            if self.penalty.points == "endpoints":
                return (self._penalty_at(real) + self._penalty_at(fake)) / 2
            t = position[:, None, None, None]
            return self._penalty_at(t * real + (1 - t) * fake)

    def _penalty_at(self, points: Tensor) -> Tensor:
        points = points.detach().requires_grad_(True)
        (gradients,) = torch.autograd.grad(self.score(points).sum(), points, create_graph=True)
        return losses.gradient_penalty(gradients, self.penalty.k, self.penalty.p)
