"""Where tensors are, on a GPU that is not there: torch's fake tensors have a device and a shape, and no values.

They refuse to mix devices, as real ones do. Backward passes would need a driver.
"""

from pathlib import Path
from typing import TypeVar, cast

import pytest
import torch
from running import REPOSITORY, new_runtime
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from pipeline.cli.bench.step import random_batch
from pipeline.config import load as configuration
from pipeline.data.loading.loader import FaceImages
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage
from pipeline.training.runtime import Runtime

GPU = torch.device("cuda", 0)
SMALL = (
    *("model.base_channels=4", "data.image_size=64", "training.global_batch_size=4", "training.micro_batch_size=4"),
    *("training.device=cpu", "training.mixed_precision=no", "training.ema_decay=0", "optimizer.fused=false"),
    *("perceptual.weights=random", "loss_weights.ssim=1", "loss_weights.style=1"),
)
M = TypeVar("M", bound=nn.Module)


def to_gpu(_: Runtime, module: M, *, frozen: bool = False) -> M:
    """As `Module.to`, which cannot move fake tensors."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(parameter.detach().to(GPU), parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(GPU))
    return module


@pytest.mark.parametrize("recipe", ["default", "paper", "narrow"])
def test_no_tensor_of_the_host_meets_one_of_the_gpu(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration.load(REPOSITORY / "configs" / f"{recipe}.yaml", list(SMALL))
    runtime, nothing = new_runtime(config), cast(FaceImages, None)
    runtime.device = GPU
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(Runtime, "to_device", to_gpu)
    monkeypatch.setattr(Runtime, "wrap", lambda _, module: module)
    context = Context(config, runtime, nothing, nothing)
    with FakeTensorMode(allow_non_fake_inputs=True):
        stage = FusionStage(context, tmp_path)
        (micro,) = stage.inputs(0, random_batch(context.order, config.data.image_size))
        output = stage.autoencoder(micro.images, micro.lambda_, micro.noise)
        terms, per_layer = stage.terms(micro, output)
    assert {"ssim", "style"} <= terms.keys()
    assert {value.device for value in (*terms.values(), *per_layer.values())} == {GPU}
