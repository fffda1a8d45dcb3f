"""One step of fusion training is docs/method.md, eq. 2 to 11, with A, B and C apart; `test_losses` has each loss."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Trained, batch_of, new_setup, tiny_config
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.config.schema import LAYERS
from pipeline.models import losses
from pipeline.models.extra_losses import structural_similarity
from pipeline.training import checkpoint
from pipeline.training.fusion import FusionStage, Inputs

WEIGHTS = {"adversarial": 1.0, "content": 0.5, "style": 0.5, "reconstruction": 30.0, "total_variation": 1.0}
EXTRA = {"ssim": 30.0, "centre": 1.0}
PYRAMID = ("model.structure=pyramid", "model.preserve_norm=true", "model.norm=none")
LATENTS = (*PYRAMID, "fusion.critic=latents", "loss_weights.ssim=30", "training.latent_noise=0.5")
OF_C = ("content", "style", "total_variation")
NO_OTHERS = tuple(f"fusion.mixture.{name}=0" for name in ("coin_flips", "single", "uniform"))
READINGS = {
    "layerwise": ("model.elements=5",),
    "shared, ssim": ("fusion.reading=shared", "model.elements=3", "loss_weights.ssim=30"),
    "map, penalty at the images": (
        *("fusion.reading=map", "model.elements=2", "fusion.map=[[1,0.5,0.5,0,0.2],[0,0.5,0.5,1,0.8]]"),
        *("penalty.points=endpoints", "penalty.p=4", "penalty.k=3"),
    ),
    "ends": (*("fusion.targets=ends", "perceptual.images=2", "fusion.mixture.equal=0.3", "fusion.mixture.uniform=0"),),
    "latents, ssim, centre": LATENTS,
    "latents alone, ssim, centre": (*LATENTS, *(f"loss_weights.{name}=0" for name in OF_C)),
    "residual": ("model.norm=none", "model.blocks=residual"),
    "spatial, layer weights": (
        *("data.image_size=64", "fusion.mixture.spatial=1", "fusion.mixture.endpoints=0", *NO_OTHERS),
        "perceptual.layer_weights=[1,10,40,0.5,0]",
    ),
    "all ones or zeros": ("fusion.mixture.endpoints=1", *NO_OTHERS),
}
OWNERS = {"map": [[1, 0.5, 0.5, 0, 0.2], [0, 0.5, 0.5, 1, 0.8]], "shared": [[1 / 3] * 5] * 3}


def new_stage(trained: Trained, folder: Path, *overrides: str) -> FusionStage:
    config = tiny_config(folder / "run", trained.shards, *overrides)
    return FusionStage(new_setup(config), trained.run / "pretrain")


def gradients(parameters: Any) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in parameters]


class Spy:
    """What the gradients are when the stage asks for each optimizer step."""

    def __init__(self, stage: FusionStage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.critic: dict[str, list[Tensor | None]] = {}
        self.autoencoder: dict[str, list[Tensor | None]] = {}
        self.order: list[str] = []
        apply = stage.runtime.optimizing.apply

        def watch(optimizer: Any, what: str) -> Tensor:
            name = what.split(", ")[1]
            self.order.append(name)
            self.critic[name] = gradients(stage.critic.parameters())
            self.autoencoder[name] = gradients(stage.average.trained.parameters())
            return apply(optimizer, what)

        monkeypatch.setattr(stage.runtime.optimizing, "apply", watch)


def expected_critic_loss(
    critic: Any, micro: Inputs, real: Tensor, fused: Tensor, k: float, p: float, endpoints: bool
) -> tuple[Tensor, Tensor]:
    real, fake = real.detach(), fused.detach()
    t = micro.position[:, None, None, None]
    penalties = []
    for points in (real, fake) if endpoints else (t * real + (1 - t) * fake,):
        points = points.detach().requires_grad_(True)
        # Per image, one at a time: no norm of D couples them.
        slopes = [
            torch.autograd.grad(critic.score(points[i : i + 1]).sum(), points, create_graph=True)[0][i]
            for i in range(len(points))
        ]
        penalties.append(torch.stack([k * slope.square().sum() ** (p / 2) for slope in slopes]))
    penalty = torch.stack(penalties).mean()
    return (critic.score(fake) - critic.score(real)).mean(), penalty


def expected_terms(stage: FusionStage, critic: Any, model: Any, micro: Inputs, owners: Tensor) -> dict[str, Tensor]:
    """The means of the equations' terms, from A, B, A', B' and C; B is the image before A."""
    a, lambda_ = micro.images, micro.lambda_
    output = model(a, lambda_, micro.noise)
    a_again, c = output.reconstruction, output.fused
    before = [i - 1 for i in range(len(a))]
    b, b_again = a[before], a_again[before]
    config, by_layer = stage.context.config, torch.einsum("bn...,nl->bl...", lambda_, owners).unbind(1)
    seen = [stage.perceptual(x[: config.perceptual.images]) for x in (c, a, b)]
    layers = list(zip(stage.layer_weights, *seen, (lam[: len(seen[0][0])] for lam in by_layer), strict=True))
    style = [w * losses.style(x, y, z, lam.reshape(len(x), -1).mean(1)) for w, x, y, z, lam in layers[:3]]
    content = [w * losses.content(x, y, z, lam) for w, x, y, z, lam in layers[3:]]
    if config.fusion.targets == "ends":
        for terms_of, some in ((style, layers[:3]), (content, layers[3:])):
            for index, (*_, lam) in enumerate(some):
                terms_of[index] = torch.where((lam == 0) | (lam == 1), terms_of[index], 0)
    only_a, only_b = ((lambda_.flatten(1) == value).all(1)[:, None, None, None] for value in (1, 0))
    end = torch.where(only_a, a, torch.where(only_b, b, c))  # C itself elsewhere: R is 0 there
    terms = {
        "adversarial": -critic.score(c) if config.fusion.critic == "images" else 0,
        "content": sum(content),
        "style": sum(style),
        "reconstruction": sum(map(losses.reconstruction, (a_again, b_again, c), (a, b, end))),
        "total_variation": sum(map(losses.total_variation, (c, a_again, b_again))),
        "ssim": 2 - structural_similarity(a_again, a) - structural_similarity(b_again, b),
    }
    if config.fusion.critic == "latents":
        terms["adversarial"] = critic.score(output.latent) - critic.score(output.mixed)
        terms["centre"] = output.off_centre
    return {name: torch.as_tensor(values).mean() for name, values in terms.items()}


@pytest.mark.parametrize(("reading", "micro"), [*((reading, 4) for reading in READINGS), ("layerwise", 2)])
def test_one_step_is_the_method(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: str, micro: int
) -> None:
    stage = new_stage(trained, tmp_path, f"training.micro_batch_size={micro}", *READINGS[reading])
    critic, autoencoder = copy.deepcopy(stage.critic), copy.deepcopy(stage.average.trained)
    batch = batch_of(stage.context, 0)
    micros = stage.inputs(0, batch)
    assert len(micros) == 4 // micro
    spy = Spy(stage, monkeypatch)
    terms = stage.step(0, batch)
    assert spy.order == ["discriminator", "autoencoder"]

    # D first, on fused images that carry no gradient to E and G.
    k, p, endpoints = (3, 4, True) if "penalty" in reading else (2, 6, False)
    parts = [
        expected_critic_loss(critic, each, real, fake, k, p, endpoints)
        for each in micros
        for output in [autoencoder(each.images, each.lambda_, each.noise)]
        for real, fake in [(output.latent, output.mixed) if "latents" in reading else (each.images, output.fused)]
    ]
    torch.stack([score + penalty for score, penalty in parts]).mean().backward()
    assert_close_gradients(spy.critic["discriminator"], gradients(critic.parameters()))
    assert all(gradient is None for gradient in spy.autoencoder["discriminator"]), "D's step is not theirs"
    torch.testing.assert_close(
        terms["loss/penalty"], torch.stack([x for _, x in parts]).mean().detach(), rtol=1e-4, atol=1e-9
    )
    wasserstein = -torch.stack([score for score, _ in parts]).mean().detach()
    torch.testing.assert_close(terms["critic/wasserstein"], wasserstein, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["critic/real"] - terms["critic/fake"], wasserstein, rtol=1e-3, atol=1e-5)

    # Then E and G, against D as it is after its step.
    owners = torch.tensor(OWNERS.get(reading.split(",")[0], torch.eye(5).tolist()))
    expected = [expected_terms(stage, stage.critic, autoencoder, each, owners) for each in micros]
    weights = WEIGHTS | {name: weight for name, weight in EXTRA.items() if name in reading}
    weights = {name: weight for name, weight in weights.items() if "alone" not in reading or name not in OF_C}
    weighted = {name.removeprefix("loss_weighted/") for name in terms if name.startswith("loss_weighted/")}
    assert weights.keys() == weighted - {"penalty"}
    means = {name: torch.stack([each[name] for each in expected]).mean() for name in weights}
    total = torch.stack([weight * means[name] for name, weight in weights.items()]).sum()
    autoencoder.zero_grad()
    total.backward()
    for name, mean in means.items():
        torch.testing.assert_close(terms[f"loss/{name}"], mean.detach(), rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(terms[f"loss_weighted/{name}"], weights[name] * mean.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["loss/total"], total.detach(), rtol=1e-4, atol=0)
    if "content" in weights:
        by_layer = zip(LAYERS, stage.layer_weights, strict=True)
        layers = sum(weight * terms[f"loss_layer/{layer}"] for layer, weight in by_layer)
        torch.testing.assert_close(layers, terms["loss/content"] + terms["loss/style"])
    assert_close_gradients(spy.autoencoder["autoencoder"], gradients(autoencoder.parameters()))
    assert all(gradient is None for gradient in spy.critic["autoencoder"]), "their step is not D's"


def assert_close_gradients(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one is not None and other is not None
        largest = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4 * largest + 1e-7)


def test_a_step_moves_every_network_but_the_perceptual(trained: Trained, tmp_path: Path) -> None:
    stage = new_stage(trained, tmp_path, "training.micro_batch_size=2")
    networks = {"autoencoder": stage.average.trained, "average": stage.average.module, "critic": stage.critic}
    before = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
    perceptual = copy.deepcopy(stage.perceptual.state_dict())
    stage.step(0, batch_of(stage.context, 0))
    for name, network in networks.items():
        for key, parameter in network.named_parameters():
            # D(C) - D(I) does not see a constant that is added to both.
            assert torch.equal(parameter, before[name][key]) == (key == "output.bias"), (name, key)
            assert parameter.grad is None
    for key, value in stage.perceptual.state_dict().items():
        assert torch.equal(value, perceptual[key]), key
    assert all(parameter.requires_grad for parameter in stage.critic.parameters()), "frozen only while E and G step"
    assert not any(parameter.requires_grad for parameter in stage.perceptual.parameters())


def test_the_average_counts_the_steps_of_pre_training(trained: Trained, tmp_path: Path) -> None:
    """Otherwise it would forget, at the beginning of fusion training, what pre-training has averaged."""
    stage = new_stage(trained, tmp_path, "training.pretrain_steps=15", "training.ema_decay=0.999")
    before = [parameter.clone() for parameter in stage.average.module.parameters()]
    stage.step(2, batch_of(stage.context, 2))
    kept = (1 + 15 + 3) / (10 + 15 + 3)
    for old, trained_one, new in zip(
        before, stage.average.trained.parameters(), stage.average.module.parameters(), strict=True
    ):
        torch.testing.assert_close(new, kept * old + (1 - kept) * trained_one, rtol=1e-5, atol=1e-7)


def test_the_draws_of_a_step_depend_on_seed_and_step_alone(trained: Trained, tmp_path: Path) -> None:
    sizes = (f"training.micro_batch_size={micro}" for micro in (4, 2))
    whole, parted = (new_stage(trained, tmp_path, size, "training.latent_noise=0.5") for size in sizes)
    for step in (0, 1, 7):
        (one,) = whole.inputs(step, batch_of(whole.context, step))
        torch.rand(2)
        two = parted.inputs(step, batch_of(parted.context, step))
        for name in Inputs._fields:
            assert torch.equal(getattr(one, name), torch.cat([getattr(each, name) for each in two])), name
        assert one.lambda_.shape == (4, 5) and one.lambda_.min() >= 0 and one.lambda_.max() <= 1
        assert one.position.min() >= 0 and one.position.max() <= 1
    (first,), (second,) = (whole.inputs(step, batch_of(whole.context, 0)) for step in (0, 1))
    assert not torch.equal(first.lambda_, second.lambda_) and not torch.equal(first.position, second.position)
    assert first.noise is not None and second.noise is not None
    assert len(torch.cat([first.noise, second.noise]).flatten(1).unique(dim=0)) == 8, "each image has its own"
    assert first.noise.std() == pytest.approx(0.5, rel=0.2)


def test_bf16_trains_on_a_cpu(trained: Trained, tmp_path: Path) -> None:
    stage = new_stage(trained, tmp_path, "training.mixed_precision=no")
    wide = stage.step(0, batch_of(stage.context, 0))
    stage = new_stage(trained, tmp_path, "training.mixed_precision=bf16")
    narrow = stage.step(0, batch_of(stage.context, 0))
    assert wide.keys() == narrow.keys()
    for name in ("loss/reconstruction", "loss/content", "loss/style", "loss/penalty", "loss/total"):
        assert narrow[name].dtype == torch.float32
        power = 1 / 6 if name == "loss/penalty" else 1  # its slope, which it is the sixth power of
        assert narrow[name] ** power == pytest.approx(float(wide[name]) ** power, rel=0.1), name
    assert narrow["loss/total"] != wide["loss/total"]
    assert all(parameter.dtype == torch.float32 for parameter in stage.average.module.parameters())


def test_it_begins_with_pretraining_and_shows_held_out_pairs(trained: Trained, tmp_path: Path) -> None:
    stage = new_stage(trained, tmp_path)
    stage.begin()
    found = checkpoint.find(trained.run / "pretrain")
    for name, module in stage.average.modules().items():
        assert all(torch.equal(value, found.module(name)[key]) for key, value in module.state_dict().items())
    pictures = stage.show().pictures
    assert pictures.keys() == {"fusion/strip", "fusion/elements", "fusion/effects"}
    two_pairs = 2 * 130 - 2  # of four test images, 128 pixels wide, under one and two lines of text
    assert pictures["fusion/strip"].size == (8 * 130 - 2, two_pairs + 30)
    assert pictures["fusion/elements"].size == (9 * 130 - 2, two_pairs + 48)
    assert stage.average.module.training


def test_it_does_not_start_from_half_a_pre_training(trained: Trained, tmp_path: Path) -> None:
    found = checkpoint.find(trained.run / "pretrain")
    checkpoint.save(tmp_path / "half", 1, found.weights, found.optimizers, found.state, keep=2)
    config = tiny_config(tmp_path / "run", trained.shards)
    with pytest.raises(UserError, match=rf"stopped at step 1 of {found.step}; run `pretrain` again"):
        FusionStage(new_setup(config), tmp_path / "half").begin()
    accepted = tiny_config(tmp_path / "run", trained.shards, "training.pretrain_steps=1")
    FusionStage(new_setup(accepted), tmp_path / "half").begin()
