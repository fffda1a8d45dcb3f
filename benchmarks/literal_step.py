"""The training step beside the paper's step coded as it reads, and beside the same step in float64.

    python benchmarks/literal_step.py --literal --check [--config FILE] [--set KEY=VALUE ...]

prints the table of `latentfuse bench step` with a line for the literal step, and relative errors against float64.
One process only; needs neither data nor weights.
"""

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.cli.bench import step as bench
from pipeline.common.errors import UserError
from pipeline.common.files import write_json
from pipeline.config.load import load
from pipeline.config.schema import LAYERS, STYLE_LAYERS, SpeedConfig
from pipeline.data.loading.loader import MicroBatch
from pipeline.models import losses
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage

FLOAT64_IMAGES = 8
"""Few: most devices are slow in float64."""


class LiteralStage:
    """One step on a batch of pairs, as docs/method.md reads; the networks are those of `FusionStage`.

    A and B are encoded separately, A', B' and C generated separately, the perceptual network sees A, B and C, Adam
    goes parameter by parameter, D sees one batch at a time, and every term is read back at every step.
    """

    name = "literal"

    def __init__(self, context: Context) -> None:
        self.context, self.fusion = context, FusionStage(context, context.config.run_dir)
        self.model, self.critic = self.fusion.average.trained, self.fusion.critic
        adam = context.config.optimizer.model_copy(update={"fused": False})
        self.optimizers = {
            "autoencoder": context.runtime.optimizing.adam(self.model, adam),
            "discriminator": context.runtime.optimizing.adam(self.critic, adam),
        }
        self.weights = context.config.loss_weights.model_dump(exclude={"ssim"})

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        """On the one micro-batch as A and, in the reverse order, as B."""
        runtime = self.context.runtime
        a, lambda_, position, _ = self.fusion.inputs(step, batch)[0]
        b = a.flip(0)
        with runtime.autocast():
            z_a, z_b = self.model.encoder(a), self.model.encoder(b)
            fused = self.model.generator(self.model.mix(z_a, z_b, lambda_))  # (1)
            again = self.model.generator(z_a), self.model.generator(z_b)
            real, fake = self.critic.score(a), self.critic.score(fused.detach())
            penalty = self.critic.penalty_of(a, fused.detach(), position)
        self._apply("discriminator", self.critic, losses.adversarial_critic(real, fake).mean() + penalty.mean())  # (3)
        with runtime.autocast():
            scores = self.critic.score(fused)
            with torch.no_grad():
                of_a, of_b = self.fusion.perceptual(a), self.fusion.perceptual(b)
            of_c = self.fusion.perceptual(fused)
        perceptual = {"style": torch.zeros_like(scores), "content": torch.zeros_like(scores)}
        layers = zip(LAYERS, self.fusion.layer_weights, of_c, of_a, of_b, strict=True)
        for number, (layer, weight, *features) in enumerate(layers):
            kind = "style" if layer in STYLE_LAYERS else "content"  # (5), (4)
            perceptual[kind] = perceptual[kind] + weight * getattr(losses, kind)(*features, lambda_[:, number])
        terms = {
            "adversarial": losses.adversarial_generator(scores),
            **perceptual,
            "reconstruction": losses.reconstruction(again[0], a) + losses.reconstruction(again[1], b),  # (7)
            "total_variation": sum((losses.total_variation(each) for each in again), losses.total_variation(fused)),
        }
        self._apply("autoencoder", self.model, losses.weighted_total(terms, self.weights))  # (11)
        self.critic.zero_grad()
        means = {name: term.mean() for name, term in terms.items()}
        assert all(value.isfinite() for value in means.values()), "random weights and images give finite terms"
        return means

    def _apply(self, name: str, module: nn.Module, loss: Tensor) -> None:
        self.context.runtime.optimizing.backward(loss)
        self.optimizers[name].step()
        module.zero_grad()


def errors(context: Context) -> dict[str, float]:
    """Relative errors of the first fusion step against the same step in float64, without any lever of `speed`.

    Returns:
        Of every loss term; and of each optimizer's gradients, the norm of the difference over the norm. Infinite
        if a scaled gradient overflowed.
    """
    torch.manual_seed(context.config.seed)
    first = bench.random_batch(context.order, context.config.data.image_size)[0]
    images, start = first.images[:FLOAT64_IMAGES], first.span.start
    batch = [MicroBatch(images, slice(start, start + len(images)))]
    stage = FusionStage(context, context.config.run_dir)
    with _plain_float64(context):
        reference = FusionStage(context, context.config.run_dir)
        for ours, theirs in (
            (stage.average.trained, reference.average.trained),
            (stage.critic, reference.critic),
            (stage.perceptual, reference.perceptual),
        ):
            theirs.load_state_dict(ours.state_dict())
        expected = _first_step(reference, batch)
    found = _first_step(stage, batch)
    infinite = torch.tensor(torch.inf)
    return {
        name: float((found.get(name, infinite).double() - value).norm() / value.norm())
        for name, value in expected.items()
    }


@contextmanager
def _plain_float64(context: Context) -> Iterator[None]:
    """What is built in this block computes in float64, also under autocast, which leaves float64 as it is."""
    runtime = context.runtime
    before = runtime.speed, runtime.memory_format, torch.get_default_dtype()
    runtime.speed, runtime.memory_format = SpeedConfig(compile="no"), torch.contiguous_format
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        runtime.speed, runtime.memory_format = before[:2]
        torch.set_default_dtype(before[2])


def _first_step(stage: FusionStage, batch: list[MicroBatch]) -> dict[str, Tensor]:
    """The loss terms, and the gradients that each optimizer applies, joined to one vector."""
    found: dict[str, Tensor] = {}
    for name, optimizer in stage.optimizers.items():

        def keep(adam: torch.optim.Optimizer, *_: object, name: str = name) -> None:
            gradients = [p.grad for group in adam.param_groups for p in group["params"] if p.grad is not None]
            found[f"gradient/{name}"] = torch.cat([gradient.flatten() for gradient in gradients])

        optimizer.optimizer.register_step_pre_hook(keep)
    terms = stage.step(0, batch)
    return {name: value for name, value in terms.items() if name.startswith("loss/")} | found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file; without it, the built-in defaults")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override; repeat it")
    parser.add_argument("--steps", type=int, default=5, help="steps to time, after two that do not count")
    parser.add_argument("--literal", action="store_true", help="time the literal step, without terms the paper lacks")
    parser.add_argument("--check", action="store_true", help="compare losses and gradients with float64")
    parser.add_argument("--profile", action="store_true", help="name the ten heaviest operations")
    parser.add_argument("--out", type=Path, help="JSON file to write besides")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps: 1 or more")
    try:
        measure(options)
    except UserError as mistake:
        parser.error(str(mistake))


def measure(options: argparse.Namespace) -> None:
    """Measure, print and write what the command line asks for."""
    config = load(options.config, options.set)
    if options.literal:
        if config.training.global_batch_size != config.training.micro_batch_size:
            raise UserError("--literal: training.global_batch_size and training.micro_batch_size must be equal")
        only_the_papers = config.loss_weights.model_copy(update={"ssim": 0.0})
        config = config.model_copy(update={"loss_weights": only_the_papers})
    context = bench.without_data(config)
    found = errors(context) if options.check else {}
    report = bench.measure(context, options.steps, options.profile)
    assert report is not None, "there is one process"
    lines = []
    if options.literal:
        ours = report.speeds[-1]
        literal = bench.speed(
            lambda: LiteralStage(context), context, report.steps, ours.matrix_flop_per_second, ours.flop_per_image
        )
        report = replace(report, speeds=(*report.speeds, literal))
        ratio = literal.seconds_per_step / ours.seconds_per_step
        lines.append(f"train is {ratio:.2f} times as fast as the paper's step coded literally, at the same precision")
    if found:
        parts = ", ".join(f"{name} {error:.2g}" for name, error in found.items())
        lines.append(f"relative error against float64: {parts}")
    if options.out is not None:
        finite = {name: error if math.isfinite(error) else None for name, error in found.items()}
        write_json(options.out, {**report.as_dict(), "errors": finite})
    print("\n".join([bench.as_text(report), *lines]))


if __name__ == "__main__":
    main()
