"""Floating-point operations of a training step, counted on the real modules; a multiplication and an addition are 2."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.schema import STYLE_LAYERS, Config
from pipeline.models import extra_losses, losses
from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.models.discriminator import Discriminator
from pipeline.models.perceptual import PerceptualNetwork

AGAIN = "+ C again"
"""What accumulation adds: work done twice, so not useful."""
PRETRAINING = "pre-training"


def per_image(config: Config) -> dict[str, int]:
    """FLOP per image of each part of a fusion step, and of pre-training; shapes only, nothing is computed.

    The parts but `AGAIN` and `PRETRAINING` add up to a step with one micro-batch.
    """
    parts: dict[str, int] = {}
    without_weights = config.perceptual.model_copy(update={"weights": "random"})

    def part(name: str, run: Callable[[], Any], without: str = "", images: int = 2) -> Any:
        counter = _Counter(display=False)
        with counter:
            result = run()
        parts[name] = counter.get_total_flops() // images - parts.get(without, 0)
        return result

    with FakeTensorMode():
        model, vgg = FusionAutoencoder(config.model), PerceptualNetwork(without_weights)
        critic = Discriminator(config.model, config.penalty, config.data.image_size)
        lambda_, real = torch.rand(2, config.model.elements), torch.rand(2, 3, *[config.data.image_size] * 2)
        output = part("E, G: A' and C", lambda: model(real, lambda_))
        part("E, G: backward", (output.reconstruction + output.fused).sum().backward)
        fused = output.fused.detach()
        scores = part("D: real and fused", lambda: critic.score(real) + critic.score(fused))
        part("D: backward", scores.sum().backward)
        judged = part("penalty: gradient", lambda: torch.stack(critic(real, fused, torch.rand(2))), "D: real and fused")
        part("penalty: double backward", judged.sum().backward, "D: backward")
        for name in ("penalty: gradient", "penalty: double backward"):
            parts[name] //= config.penalty.every
        critic.requires_grad_(False)
        part("frozen D: fused, to its pixels", lambda: critic.score(fused.requires_grad_()).sum().backward())
        targets, features = part("VGG: real", lambda: vgg(real)), part("VGG: fused", lambda: vgg(fused))
        part("VGG: fused, to its pixels", torch.stack([each.sum() for each in features]).sum().backward)
        pairs = [(f.detach().requires_grad_(), t) for f, t in zip(features, targets, strict=True)]
        styles = pairs[: len(STYLE_LAYERS)]

        def style(features: Tensor, target: Tensor) -> Tensor:
            of_target = losses.gram_matrix(target)
            return losses.style_of_grams(losses.gram_matrix(features), of_target, of_target, lambda_[:, 0])

        part("Gram matrices", lambda: torch.stack([style(f, t) for f, t in styles]).sum().backward())
        if config.loss_weights.ssim:
            again = output.reconstruction.detach().requires_grad_()
            part("SSIM", lambda: extra_losses.structural_similarity(again, real).sum().backward())
        if config.loss_weights.separation:
            part("separation", lambda: _separation(config, model, vgg), images=config.training.micro_batch_size)
        part(AGAIN, lambda: model(real, lambda_))
        part(PRETRAINING, lambda: model(real).reconstruction.sum().backward())
        parts[PRETRAINING] += parts.get("SSIM", 0)
    return parts


def _separation(config: Config, model: FusionAutoencoder, vgg: PerceptualNetwork) -> None:
    """What `loss_weights.separation` adds to a micro-batch: flipped images through G, these and A', B' through VGG."""
    pairs, side = config.fusion.separation_pairs, config.data.image_size
    z = torch.rand(pairs * config.model.elements, sum(model.sizes), side // 32, side // 32, requires_grad=True)
    others = torch.rand(pairs + 1, 3, side, side, requires_grad=True)
    features = vgg(torch.cat([model.generator(z), others]))
    grams = [losses.gram_matrix(each) for each in features[: len(STYLE_LAYERS)]]
    torch.stack([each.sum() for each in (*features, *grams)]).sum().backward()


def useful(config: Config) -> int:
    """FLOP per image of a fusion step."""
    return sum(flop for name, flop in per_image(config).items() if name not in (AGAIN, PRETRAINING))


class _Counter(FlopCounterMode):
    """Counts totals only: torch's tracker of modules fails at the penalty's gradient."""

    def __enter__(self) -> "_Counter":
        self.mod_tracker = _NoModules()  # type: ignore[assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self


class _NoModules:
    """Everything is done by the program as a whole."""

    parents = frozenset({"Global"})
    is_bw = False

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
