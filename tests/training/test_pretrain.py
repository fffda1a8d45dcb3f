"""One step of pre-training is docs/method.md, eq. 10, whatever the accumulation."""

import copy
from pathlib import Path

import pytest
import torch
from running import Trained, batch_of, new_setup, tiny_config

from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.models.extra_losses import structural_similarity
from pipeline.training.pretrain import PretrainStage


def new_stage(trained: Trained, folder: Path, *overrides: str) -> PretrainStage:
    return PretrainStage(new_setup(tiny_config(folder / "run", trained.shards, *overrides)))


@pytest.mark.parametrize("ssim", [0, 60])
@pytest.mark.parametrize("micro", [4, 2])
def test_one_step_minimises_the_mean_absolute_difference(
    trained: Trained, tmp_path: Path, micro: int, ssim: float
) -> None:
    """And, if asked for, 1 - SSIM by its share of the weight of fusion training's reconstruction, which is 30."""
    stage = new_stage(trained, tmp_path, f"training.micro_batch_size={micro}", f"loss_weights.ssim={ssim}")
    module = stage.average.trained
    reference: FusionAutoencoder = copy.deepcopy(module)
    chosen = stage.context.config.optimizer
    adam = torch.optim.Adam(reference.parameters(), lr=chosen.learning_rate, betas=(chosen.beta1, chosen.beta2))
    batch = batch_of(stage.context, 0)
    assert len(batch) == 4 // micro
    terms = stage.step(0, batch)

    differences, totals = [], []
    for each in batch:
        assert each.flips is not None
        mirrored = [image.flip(-1) if flip else image for image, flip in zip(each.images, each.flips, strict=True)]
        images = torch.stack(mirrored).float() / 127.5 - 1
        again = reference.generator(reference.encoder(images))
        differences.append((again - images).abs().mean())
        totals.append(differences[-1] + ssim / 30 * (1 - structural_similarity(again, images).mean()))
    difference, expected = torch.stack(differences).mean(), torch.stack(totals).mean()
    expected.backward()
    gradients = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    adam.step()
    for name in ("loss/autoencoder", "loss_weighted/autoencoder"):
        torch.testing.assert_close(terms[name], difference.detach())
    torch.testing.assert_close(terms["loss/total"], expected.detach())
    if ssim:
        torch.testing.assert_close(terms["loss_weighted/ssim"], (expected - difference).detach())
    else:
        assert "loss/ssim" not in terms
    torch.testing.assert_close(terms["gradient_norm/autoencoder"], gradients.norm(), rtol=1e-4, atol=0)
    for (name, ours), theirs in zip(module.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=chosen.learning_rate / 100, msg=name)


def test_the_average_follows_and_is_what_is_shown(trained: Trained, tmp_path: Path) -> None:
    stage = new_stage(trained, tmp_path, "training.ema_decay=0.9")
    start = {name: p.clone() for name, p in stage.average.trained.named_parameters()}
    stage.step(0, batch_of(stage.context, 0))
    share = 2 / 11  # (1 + 1) / (10 + 1), under 0.9
    for name, p in stage.average.module.named_parameters():
        expected = share * start[name] + (1 - share) * dict(stage.average.trained.named_parameters())[name]
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-7)
    stage.settle()
    shown = stage.show()
    assert shown.pictures["held_out/reconstruction"].height == 2 * 194 - 2
    with torch.no_grad():
        images = stage.context.held_out.first(4)
        back = stage.average.module.eval()(images).reconstruction
        stage.average.module.train()
    assert shown.measures["held_out/L1"] == pytest.approx(float((back - images).abs().mean()), rel=1e-5)
    assert stage.average.module.training, "showing leaves the mode as it was"


def test_it_learns(trained: Trained, tmp_path: Path) -> None:
    stage = new_stage(trained, tmp_path, "model.base_channels=4", "optimizer.learning_rate=0.003")
    losses = [float(stage.step(step, batch_of(stage.context, 0))["loss/total"]) for step in range(60)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_initial_weights_depend_on_the_seed_alone(trained: Trained, tmp_path: Path) -> None:
    def weights(*overrides: str) -> torch.Tensor:
        return next(new_stage(trained, tmp_path, *overrides).average.trained.encoder.parameters()).detach()

    first = weights()
    torch.rand(3)
    assert torch.equal(first, weights()) and not torch.equal(first, weights("seed=1"))
