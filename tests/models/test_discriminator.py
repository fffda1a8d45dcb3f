"""D and its gradient penalty (docs/method.md, eq. 2)."""

import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.schema import ModelConfig, Norm, PenaltyConfig
from pipeline.models.discriminator import Discriminator

Points = Literal["interpolate", "endpoints"]
Sees = Literal["images", "latents"]


def critic(
    points: Points = "interpolate",
    norm: Norm = "layer",
    size: int = 64,
    gain: float = 20.0,
    k: float = 2.0,
    p: float = 6.0,
    sees: Sees = "images",
) -> Discriminator:
    torch.manual_seed(0)
    config = ModelConfig(base_channels=2, discriminator_norm=norm, discriminator_output_gain=gain)
    return Discriminator(config, PenaltyConfig(k=k, p=p, points=points), size, sees)


def batch(count: int = 3, size: int = 64, sees: Sees = "images") -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    shape = (3, size, size) if sees == "images" else (32, size // 32, size // 32)
    real, fake = (torch.rand(count, *shape, generator=random) * 2 - 1 for _ in range(2))
    return real, fake, torch.rand(count, generator=random)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("sees", ["images", "latents"])
def test_shapes(size: int, norm: Norm, sees: Sees) -> None:
    output = critic(norm=norm, size=size, sees=sees)(*batch(size=size, sees=sees))
    assert [part.shape for part in output] == [(3,)] * 3


def test_layers_are_the_papers() -> None:
    with torch.device("meta"):
        d = Discriminator(ModelConfig(discriminator_norm="batch"), PenaltyConfig(), 128)
    convolutions = [layer for layer in d.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1024]
    norms = [layer.num_features for layer in d.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms == [128, 256, 512, 1024]
    assert (d.output.in_features, d.output.out_features) == (16384, 1)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_norms(norm: Norm) -> None:
    kinds = {"batch": nn.BatchNorm2d, "layer": nn.GroupNorm}
    found = [type(layer) for layer in critic(norm=norm).modules() if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm)]
    assert found == ([] if norm == "none" else [kinds[norm]] * 4)


@pytest.mark.parametrize(("norm", "sees"), [("batch", "images"), ("layer", "images"), ("batch", "latents")])
def test_scores_belong_to_their_images(norm: Norm, sees: Sees) -> None:
    """Also where both kinds are scored at once: only BatchNorm would tell."""
    d = critic(norm=norm, sees=sees).double()
    real, fake, position = (each.double() for each in batch(sees=sees))
    output = d(real, fake, position)
    torch.testing.assert_close(output.real, d.score(real), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(output.fake, d.score(fake), rtol=1e-12, atol=1e-14)
    assert (d.score(real) - d.score(fake)).abs().min() > 1e-4
    torch.testing.assert_close(d(fake, real, 1 - position).penalty, output.penalty)
    assert d(real, fake, position, penalised=False).penalty.tolist() == [0, 0, 0]


def penalty_by_hand(d: Discriminator, real: Tensor, fake: Tensor, position: Tensor) -> Tensor:
    """Eq. 2 in float64, an image at a time: possible without BatchNorm, which couples them."""
    values = []
    for a, c, t in zip(real.double(), fake.double(), position.double(), strict=True):
        norms = []
        for point in (t * a + (1 - t) * c,) if d.penalty.points == "interpolate" else (a, c):
            x = point[None].clone().requires_grad_()
            score = (d.body(x).flatten() * d.output.weight[0]).sum() + d.output.bias[0]
            (gradient,) = torch.autograd.grad(score, x, create_graph=True)
            norms.append(d.penalty.k * torch.linalg.vector_norm(gradient) ** d.penalty.p)
        values.append(torch.stack(norms).mean())
    return torch.stack(values)


@pytest.mark.parametrize("points", ["interpolate", "endpoints"])
@pytest.mark.parametrize(("norm", "sees"), [("layer", "images"), ("none", "images"), ("none", "latents")])
@pytest.mark.parametrize(("k", "p"), [(2.0, 6.0), (0.7, 2.0)])
def test_penalty(points: Points, norm: Norm, sees: Sees, k: float, p: float) -> None:
    d, inputs = critic(points, norm, k=k, p=p, sees=sees), batch(sees=sees)
    exact = copy.deepcopy(d).double()
    ours, by_hand = d(*inputs).penalty, penalty_by_hand(exact, *inputs)
    assert ours.dtype == torch.float32 and (ours > 0).all()
    torch.testing.assert_close(ours.double(), by_hand, rtol=1e-3, atol=1e-12)
    ours.mean().backward()
    by_hand.mean().backward()
    for (name, parameter), wanted in zip(d.named_parameters(), exact.parameters(), strict=True):
        if name == "output.bias":  # moves every score alike, so no slope
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        gradient = torch.zeros_like(wanted) if wanted.grad is None else wanted.grad
        scale = float(gradient.abs().max())
        torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-2, atol=2e-3 * scale + 1e-12, msg=name)


def test_penalty_is_taken_where_position_says() -> None:
    d, (real, fake, _) = critic(), batch()
    at_real, at_fake = d(real, fake, torch.ones(3)).penalty, d(real, fake, torch.zeros(3)).penalty
    torch.testing.assert_close(at_real, d(real, real, torch.full((3,), 0.3)).penalty)
    torch.testing.assert_close(at_fake, d(fake, fake, torch.full((3,), 0.3)).penalty)
    both = critic("endpoints")
    torch.testing.assert_close(both(real, fake, torch.rand(3)).penalty, (at_real + at_fake) / 2)


@pytest.mark.parametrize("points", ["interpolate", "endpoints"])
def test_one_backward_reaches_every_parameter(points: Points) -> None:
    d = critic(points)
    real, fake, penalty = d(*batch())
    (fake.mean() - real.mean() + penalty.mean()).backward()
    # The output bias cancels in D(C) - D(I), but it has a gradient, so DDP finds every parameter in use.
    assert [name for name, p in d.named_parameters() if p.grad is None] == []
    still = [name for name, p in d.named_parameters() if not p.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert still in ([], ["output.bias"])


def test_penalty_under_autocast_and_no_grad_is_fp32() -> None:
    d, inputs = critic(), batch()
    exact = d(*inputs).penalty
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = d(*inputs)
    assert output.real.dtype == torch.bfloat16
    assert torch.equal(output.penalty, exact)
    with torch.no_grad():
        torch.testing.assert_close(d(*inputs).penalty, exact)


def test_flat_critic_has_no_penalty_and_no_nan() -> None:
    d = critic()
    nn.init.zeros_(d.output.weight)
    penalty = d(*batch()).penalty
    penalty.mean().backward()
    assert torch.equal(penalty, torch.zeros(3))
    assert all(torch.isfinite(p.grad).all() for p in d.parameters() if p.grad is not None)


def test_no_gradient_reaches_the_images() -> None:
    d, (real, fake, position) = critic(), batch()
    real.requires_grad_()
    d(real, fake, position).penalty.sum().backward()
    assert real.grad is None


def test_output_gain() -> None:
    plain, small = critic(gain=1.0), critic(gain=0.05)
    torch.testing.assert_close(small.output.weight, plain.output.weight * 0.05)
    assert torch.equal(next(small.body.parameters()), next(plain.body.parameters()))
    assert critic(gain=0.05)(*batch()).penalty.max() < plain(*batch()).penalty.max() * 0.05**6 * 1.01
