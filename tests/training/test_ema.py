"""The moving average, and BatchNorm's statistics for use."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.schema import ModelConfig
from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.training.ema import MovingAverage, calibrate_batch_norm


def model() -> FusionAutoencoder:
    torch.manual_seed(0)
    return FusionAutoencoder(ModelConfig(base_channels=1))


@torch.no_grad()
def change(module: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter))


def flat(module: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).double().numpy()


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_formula(decay: float) -> None:
    trained = model()
    average = MovingAverage(trained, decay)
    expected = flat(trained)
    for step in range(1, 30):
        change(trained, step)
        average.update(step)
        present = min(decay, (1 + step) / (10 + step))
        expected = present * expected + (1 - present) * flat(trained)
        np.testing.assert_allclose(flat(average.module), expected, rtol=1e-5, atol=1e-5)
    late = flat(average.module)
    change(trained, 99)
    average.update(1_000_000)
    np.testing.assert_allclose(flat(average.module), decay * late + (1 - decay) * flat(trained), rtol=1e-5, atol=1e-5)


def test_the_average_is_apart_from_training() -> None:
    trained = model()
    average = MovingAverage(trained, 0.5)
    before = flat(trained)
    assert not any(p.requires_grad for p in average.module.parameters())
    assert all(p.requires_grad for p in trained.parameters())
    change(average.module, 1)
    assert np.array_equal(flat(trained), before)
    modules = average.modules()
    assert list(modules) == ["autoencoder", "average"]
    assert modules["autoencoder"] is trained and modules["average"] is average.module


def test_no_average() -> None:
    trained = model()
    average = MovingAverage(trained, 0.0)
    assert average.module is trained and average.modules() == {"autoencoder": trained}
    assert all(p.requires_grad for p in trained.parameters())
    before = flat(trained)
    average.update(3)
    assert np.array_equal(flat(trained), before)


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(2)
    return [(torch.randn(4, 3, 32, 32, generator=random), torch.rand(4, 5, generator=random)) for _ in range(count)]


def by_hand(module: nn.Module, inputs: list[tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over the batches of each batch's mean and unbiased variance, of what every BatchNorm is given."""
    seen: dict[str, list[Tensor]] = {}
    module = copy.deepcopy(module).train()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            seen[name] = []
            layer.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0].detach()))
    for arguments in inputs:
        module(*arguments)
    result = {}
    for name, given in seen.items():
        flat = [x.double().transpose(0, 1).flatten(1) for x in given]
        result[name] = (
            torch.stack([x.mean(1) for x in flat]).mean(0).float(),
            torch.stack([x.var(1, unbiased=True) for x in flat]).mean(0).float(),
        )
    return result


@pytest.mark.parametrize("training", [True, False])
def test_calibration_is_the_mean_over_the_batches(training: bool) -> None:
    module = model()
    change(module, 3)
    for arguments in batches(2):
        module(*arguments)  # something to forget
    module.train(training)
    weights = flat(module)
    calibrate_batch_norm(module, iter(batches()))
    expected = by_hand(module, batches())
    norms = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert norms.keys() == expected.keys() and len(norms) == 8
    for name, layer in norms.items():
        assert layer.running_mean is not None and layer.running_var is not None
        torch.testing.assert_close(layer.running_mean, expected[name][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, expected[name][1], rtol=1e-4, atol=1e-5)
        assert layer.momentum == 0.1
    assert module.training == training and np.array_equal(flat(module), weights)
