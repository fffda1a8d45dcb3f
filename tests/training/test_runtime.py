"""Devices, precision and skipped steps."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from pipeline.common.devices import check_device, unsupported_gpu
from pipeline.common.errors import UserError
from pipeline.config.schema import OptimizerConfig, SpeedConfig, TrainingConfig
from pipeline.data.loading.loader import MicroBatch
from pipeline.training.optimizing import OptimizerSteps
from pipeline.training.runtime import Runtime


def new_runtime(speed: SpeedConfig | None = None, **options: Any) -> Runtime:
    AcceleratorState._reset_state(True)
    return Runtime(TrainingConfig(**{"device": "cpu", "max_skipped_steps": 3, **options}), speed)


@pytest.fixture
def runtime() -> Runtime:
    return new_runtime()


@pytest.fixture
def optimizing(runtime: Runtime) -> OptimizerSteps:
    return runtime.optimizing


def test_images_are_mirrored_where_the_batch_says_so(runtime: Runtime) -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    kept = images.clone()
    plain = runtime.images(MicroBatch(images, slice(0, 3)))
    mirrored = runtime.images(MicroBatch(images, slice(0, 3), np.array([True, False, True])))
    assert torch.equal(plain, images / 127.5 - 1) and torch.equal(images, kept)
    assert torch.equal(mirrored, torch.stack([plain[0].flip(-1), plain[1], plain[2].flip(-1)]))


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_adam_and_its_norm_is_that_of_all_gradients(optimizing: OptimizerSteps, fused: bool) -> None:
    torch.manual_seed(0)
    module, reference = nn.Linear(4, 3), nn.Linear(4, 3)
    reference.load_state_dict(module.state_dict())
    config = OptimizerConfig(learning_rate=0.01, beta1=0.3, beta2=0.7, fused=fused)
    optimizer = optimizing.adam(module, config)
    adam = torch.optim.Adam(reference.parameters(), lr=0.01, betas=(0.3, 0.7))
    for _ in range(3):
        inputs = torch.randn(5, 4)
        optimizing.backward(module(inputs).square().mean())
        reference(inputs).square().mean().backward()
        expected = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None]).norm()
        torch.testing.assert_close(optimizing.apply(optimizer, "test"), expected)
        assert all(p.grad is None for p in module.parameters())
        adam.step()
        adam.zero_grad()
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7 if fused else 0)


def test_what_is_done_with_can_be_let_go(runtime: Runtime) -> None:
    module = nn.Linear(100, 100)
    weight, optimizer = weakref.ref(module.weight), runtime.optimizing.adam(runtime.wrap(module), OptimizerConfig())
    del module, optimizer
    assert weight() is not None, "accelerate holds it"
    runtime.free_memory()
    assert weight() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_skipped_counted_and_bounded(optimizing: OptimizerSteps, value: float) -> None:
    module = nn.Linear(2, 1)
    optimizer = optimizing.adam(module, OptimizerConfig())
    before = module.weight.detach().clone()

    def step(factor: float) -> None:
        optimizing.backward(module(torch.ones(1, 2)).sum() * factor)
        optimizing.apply(optimizer, "train, autoencoder")

    step(value)
    step(value)
    assert torch.equal(module.weight, before) and optimizing.skipped == 2
    step(1.0)  # the count of those in a row starts again
    assert not torch.equal(module.weight, before)
    step(value)
    step(value)
    assert optimizing.failure is None
    step(value)
    assert optimizing.failure is not None
    assert "train, autoencoder: the gradient was not finite 3 times in a row" in optimizing.failure
    assert optimizing.skipped == 5 and torch.isfinite(module.weight).all()


def test_a_loss_scale_that_collapses_is_a_failure(runtime: Runtime) -> None:
    """As under fp16: the scale is halved at each overflow, whether or not other steps come between."""
    optimizing = runtime.optimizing
    runtime.accelerator.scaler = torch.GradScaler("cpu", init_scale=3e-4, growth_interval=1000)
    module = nn.Linear(2, 1)
    optimizer = optimizing.adam(module, OptimizerConfig())
    before = module.weight.detach().clone()
    optimizing.backward(module(torch.ones(1, 2)).sum() * float("inf"))
    optimizing.apply(optimizer, "train, autoencoder")
    assert optimizing.failure is None and torch.equal(module.weight, before), "skipped by the scaler"
    optimizing.backward(module(torch.ones(1, 2)).sum() * float("inf"))
    optimizing.apply(optimizer, "train, autoencoder")
    assert (
        optimizing.failure == "train, autoencoder: the fp16 loss scale fell to 7.5e-05; use mixed_precision bf16 or no"
    )


def test_an_infinite_loss_with_finite_gradients_is_seen(optimizing: OptimizerSteps) -> None:
    module = nn.Linear(2, 1)
    optimizer = optimizing.adam(module, OptimizerConfig())
    before = module.weight.detach().clone()
    optimizing.backward(module(torch.ones(1, 2)).sum() + float("inf"))
    assert not torch.isfinite(optimizing.apply(optimizer, "train, autoencoder"))
    assert torch.equal(module.weight, before) and optimizing.bad_gradients == ["weight", "bias"]


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizing = new_runtime().optimizing
    assert optimizing.loss_scale == 1.0 and optimizing.scaler_state() == {}
    assert new_runtime(mixed_precision="bf16").precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert new_runtime().precision == "bf16", "what `accelerate launch` says, where the configuration says nothing"
    assert new_runtime(mixed_precision="no").precision == "no"


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)


def test_devices_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device("cpu", "bf16")
    check_device("auto", "no")
    with pytest.raises(UserError, match=r"device: cuda was asked for"):
        check_device("cuda", "no")
    with pytest.raises(UserError, match="fp16 needs a CUDA GPU"):
        check_device("auto", "fp16")


def test_devices_with_a_v100(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (7, 0), ["sm_70", "sm_80"], bf16=False)
    check_device("cuda", "fp16")
    with pytest.raises(UserError, match="a GPU has no bf16; use fp16"):
        check_device("auto", "bf16")
    check_device("cpu", "bf16")
    with pytest.raises(UserError, match="fp16 needs a CUDA GPU"):
        check_device("cpu", "fp16")


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 0), ["sm_70", "sm_80"], True),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_90"], True),
        ((12, 0), ["sm_90", "sm_120"], True),
        ((12, 0), ["sm_90", "compute_90"], False),
    ],
)
def test_which_gpus_a_build_of_torch_runs_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], runs: bool
) -> None:
    pretend_gpu(monkeypatch, capability, built, bf16=True)
    problem = unsupported_gpu()
    assert (problem is None) == runs
    if problem:
        assert f"sm_{capability[0]}{capability[1]}" in problem and "pip install" in problem
        with pytest.raises(UserError, match="pip install"):
            check_device("auto", "no")


def test_switches_reach_torch() -> None:
    for value in (True, False):
        new_runtime(SpeedConfig(tf32=value, cudnn_benchmark=value))
        assert torch.backends.cudnn.benchmark is value and torch.backends.cudnn.allow_tf32 is value
        assert torch.backends.cuda.matmul.allow_tf32 is value


def test_no_compiler_is_said_before_anything_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"speed.compile: needs a compiler, and g\+\+ is not on the PATH"):
        new_runtime(SpeedConfig(compile="default"))
    assert new_runtime(SpeedConfig(compile="no"))
