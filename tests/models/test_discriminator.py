"""D and its gradient penalty, METHOD (2)."""

import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.schema import ModelConfig, Norm, PenaltyConfig
from pipeline.models.discriminator import Discriminator

Points = Literal["interpolate", "endpoints"]


def critic(
    points: Points = "interpolate",
    norm: Norm = "layer",
    size: int = 64,
    gain: float = 20.0,
    k: float = 2.0,
    p: float = 6.0,
) -> Discriminator:
    torch.manual_seed(0)
    config = ModelConfig(base_channels=2, discriminator_norm=norm, discriminator_output_gain=gain)
    return Discriminator(config, PenaltyConfig(k=k, p=p, points=points), size)


def batch(count: int = 3, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    real, fake = (torch.rand(count, 3, size, size, generator=random) * 2 - 1 for _ in range(2))
    return real, fake, torch.rand(count, generator=random)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_shapes(size: int, norm: Norm) -> None:
    output = critic(norm=norm, size=size)(*batch(size=size))
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


def test_scores_belong_to_their_images() -> None:
    d, (real, fake, position) = critic(), batch()
    output = d(real, fake, position)
    torch.testing.assert_close(output.real, d.score(real))
    torch.testing.assert_close(output.fake, d.score(fake))
    assert (d.score(real) - d.score(fake)).abs().min() > 1e-4
    swapped = d(fake, real, 1 - position)
    torch.testing.assert_close(swapped.penalty, output.penalty)


def penalty_by_hand(d: Discriminator, real: Tensor, fake: Tensor, position: Tensor) -> Tensor:
    """(2) in float64, an image at a time: possible without BatchNorm, which couples them."""
    exact = copy.deepcopy(d).double()
    values = []
    for i in range(len(real)):
        if d.penalty.points == "interpolate":
            points = [position[i].double() * real[i].double() + (1 - position[i].double()) * fake[i].double()]
        else:
            points = [real[i].double(), fake[i].double()]
        norms = []
        for point in points:
            x = point[None].clone().requires_grad_()
            hidden = x
            for block in exact.body:
                for layer in block:
                    hidden = layer(hidden)
            score = (hidden.flatten() * exact.output.weight[0]).sum() + exact.output.bias[0]
            (gradient,) = torch.autograd.grad(score, x, create_graph=True)
            norms.append(d.penalty.k * torch.linalg.vector_norm(gradient) ** d.penalty.p)
        values.append(sum(norms) / len(norms))
    return torch.stack([torch.as_tensor(value) for value in values])


@pytest.mark.parametrize("points", ["interpolate", "endpoints"])
@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize(("k", "p"), [(2.0, 6.0), (0.7, 2.0)])
def test_penalty(points: Points, norm: Norm, k: float, p: float) -> None:
    d, (real, fake, position) = critic(points, norm, k=k, p=p), batch()
    ours = d(real, fake, position).penalty
    by_hand = penalty_by_hand(d, real, fake, position)
    assert ours.dtype == torch.float32 and (ours > 0).all()
    torch.testing.assert_close(ours.double(), by_hand, rtol=1e-3, atol=1e-12)
    ours.mean().backward()
    exact = copy.deepcopy(d).double()
    exact.zero_grad()
    penalty_by_hand_gradient = gradients_by_hand(exact, real, fake, position)
    for name, parameter in d.named_parameters():
        if name == "output.bias":  # moves every score alike, so no slope
            assert parameter.grad is None
            continue
        wanted = penalty_by_hand_gradient[name]
        assert parameter.grad is not None
        scale = float(wanted.abs().max())
        torch.testing.assert_close(parameter.grad.double(), wanted, rtol=1e-2, atol=2e-3 * scale + 1e-12, msg=name)


def gradients_by_hand(d: Discriminator, real: Tensor, fake: Tensor, position: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in d.named_parameters() if name != "output.bias"}
    copied = copy.deepcopy  # the computation by hand copies D: differentiate by the copy that it makes
    made: list[Discriminator] = []

    def keep(module: Discriminator, *rest: object) -> Discriminator:
        made.append(copied(module))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy, "deepcopy", keep)
        total = penalty_by_hand(d, real, fake, position).mean()
    parameters = dict(made[0].named_parameters())
    values = torch.autograd.grad(total, [parameters[name] for name in named], allow_unused=True)
    zeros = [torch.zeros_like(p) for p in named.values()]
    return {name: z if v is None else v for name, v, z in zip(named, values, zeros, strict=True)}


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
    assert torch.equal(small.body[0][0].weight, plain.body[0][0].weight)
    assert critic(gain=0.05)(*batch()).penalty.max() < plain(*batch()).penalty.max() * 0.05**6 * 1.01
