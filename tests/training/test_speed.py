"""Every setting for speed leaves the numbers as they are, to rounding; and the host does not wait for the device."""

import ctypes
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Trained, assert_equal_bits, batch_of, latentfuse, new_setup, tiny_arguments, tiny_config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.common.errors import UserError
from pipeline.config.schema import OptimizerConfig
from pipeline.training import checkpoint
from pipeline.training.fusion import FusionStage
from pipeline.training.pretrain import PretrainStage

WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")
"""Operations that bring numbers to the host."""


@pytest.fixture(autouse=True)
def exact() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def new_stage(trained: Trained, folder: Path, *overrides: str) -> FusionStage:
    stage = FusionStage(new_setup(tiny_config(folder / "run", trained.shards, *overrides)), trained.run / "pretrain")
    stage.begin()
    return stage


def train(stage: FusionStage, steps: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of the last step, and all weights after it."""
    for step in range(steps):
        terms = stage.step(step, batch_of(stage.context, step))
    stage.runtime.optimizing.check()
    return terms, {f"{n}.{k}": v for n, m in stage.modules.items() for k, v in m.state_dict().items()}


PLAIN = ("speed.channels_last=false", "speed.tf32=false", "speed.cudnn_benchmark=false", "optimizer.fused=false")
LEVERS = ("speed.channels_last=true", "speed.channels_last=null", "optimizer.fused=true")
"""`null`: in the frozen network alone, on CPUs. The others are for GPUs: `test_switches_reach_torch`."""


def test_a_lever_changes_nothing_but_rounding(trained: Trained, tmp_path: Path) -> None:
    stage = new_stage(trained, tmp_path, *PLAIN)
    plain_terms, plain = train(stage)
    assert_layout(stage, frozen=False, others=False)
    for lever in LEVERS:
        stage = new_stage(trained, tmp_path, *PLAIN, lever)
        terms, weights = train(stage)
        assert_layout(stage, frozen="channels_last" in lever, others="channels_last=true" in lever)
        torch.testing.assert_close(terms, plain_terms, rtol=1e-8, atol=1e-12, msg=lambda text: f"{lever}: {text}")  # noqa: B023
        torch.testing.assert_close(weights, plain, rtol=1e-7, atol=1e-9, msg=lambda text: f"{lever}: {text}")  # noqa: B023


def assert_layout(stage: FusionStage, *, frozen: bool, others: bool) -> None:
    """Whether the frozen network, and the others and the images, are channels last."""

    def channels_last(*tensors: Tensor) -> set[bool]:
        wide = [each for each in tensors if each.dim() == 4 and each.shape[1] > 1 and each.shape[2] > 1]
        return {each.is_contiguous(memory_format=torch.channels_last) for each in wide}

    (micro,) = stage.inputs(0, batch_of(stage.context, 0))
    assert channels_last(*stage.perceptual.parameters()) == {frozen}
    for module in (stage.critic, stage.average.trained, stage.average.module):
        assert channels_last(*module.parameters()) == {others}
    assert channels_last(micro.images) == {others}


@pytest.mark.parametrize("last", [True, False])
def test_the_layout_holds_through_a_step(trained: Trained, tmp_path: Path, last: bool) -> None:
    """Of features where they are large, in E, G and P, and of the gradients that P takes; one copy would spoil all."""
    recipe = ("blocks=residual", "structure=pyramid", "norm=none", "base_channels=8")
    options = [*(f"model.{each}" for each in recipe), "loss_weights.ssim=1", f"speed.channels_last={str(last).lower()}"]
    stage = FusionStage(new_setup(tiny_config(tmp_path / "run", trained.shards, *options)), trained.run)
    seen: dict[str, set[bool]] = {"features": set(), "gradients": set()}

    def note(kind: str, x: Any) -> None:
        if isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] > 3 and x.shape[2] > 4:
            seen[kind].add(x.is_contiguous(memory_format=torch.channels_last))

    def outputs(module: nn.Module, _: Any, output: Any) -> None:
        note("features", output)
        if isinstance(module, nn.ReLU) and output.requires_grad:
            output.register_hook(lambda gradient: note("gradients", gradient))

    for module in (*stage.average.trained.modules(), *stage.perceptual.modules()):
        module.register_forward_hook(outputs)
    stage.step(0, batch_of(stage.context, 0))
    assert seen == {"features": {last}, "gradients": {last}}


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc keeps memory, other libraries decide alone"
)
def test_freed_memory_is_used_again() -> None:
    """In a process of its own: 40 tensors of 8 MiB, one after another, are 80,000 pages of 4 KiB if each is new."""
    program = """
import resource, torch
from pipeline.common.errors import UserError
from pipeline.config.schema import SpeedConfig, TrainingConfig
from pipeline.training.runtime import Runtime
for keep in (False, True):
    Runtime(TrainingConfig(device="cpu"), SpeedConfig(keep_freed_memory=keep))
    torch.ones(2**23)  # grows the heap once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(2**21)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    given_back, kept = map(int, run.stdout.split())
    assert kept < 600 and given_back > 5000


def test_nothing_but_steps_is_compiled(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what is measured before training, shown or averaged: other batches, and no step waits for their compiler."""
    torch.set_default_dtype(torch.float32)
    graphs: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(place[-1])
        return graph

    def noted(step: Callable[..., Any]) -> Callable[..., Any]:
        def in_step(*arguments: Any) -> Any:
            place.append("step")
            try:
                return step(*arguments)
            finally:
                place.pop()

        return in_step

    place, compile_ = ["elsewhere"], nn.Module.compile
    for stage in (PretrainStage, FusionStage):
        monkeypatch.setattr(stage, "step", noted(stage.step))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compile_(self, backend=compiler, dynamic=False))
    options = (
        *("speed.compile=default", "training.ema_decay=0", "perceptual.feature_scale=unit"),
        *("model.discriminator_norm=layer", "tracking.image_every=2"),
    )
    torch._dynamo.reset()
    for command in ("pretrain", "train"):
        result = latentfuse(command, *tiny_arguments(tmp_path / "run", trained.shards, *options))
        assert result.code == 0, result.errors
    assert graphs and set(graphs) == {"step"}


@pytest.mark.parametrize("micro", [2, 4])
def test_gradients_of_cuda_graphs_are_added_to_ours(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    """Theirs lie in the graphs' memory, which the next micro-batch overwrites. Without graphs the numbers are alike."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: None)
    weights = []
    for compiled in ("no", "reduce-overhead"):
        options = (f"training.micro_batch_size={micro}", f"speed.compile={compiled}")
        stage = FusionStage(new_setup(tiny_config(tmp_path / compiled, trained.shards, *options)), trained.run)
        stage.begin()
        parameters = [p for module in (stage.average.trained, stage.critic) for p in module.parameters()]
        ours = [p.grad for p in parameters]
        for step in range(2):
            stage.step(step, batch_of(stage.context, step))
        if compiled != "no":
            assert all(grad is not None and p.grad is grad for p, grad in zip(parameters, ours, strict=True))
        weights.append([p.detach() for p in parameters])
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.slow
def test_compiled(trained: Trained, tmp_path: Path) -> None:
    """By torch's own compiler, for the CPU: minutes."""
    options = ("model.base_channels=2", "training.fusion_steps=2")
    plain_terms, plain = train(new_stage(trained, tmp_path, *options))
    terms, weights = train(new_stage(trained, tmp_path, *options, "speed.compile=default"))
    torch.testing.assert_close(terms, plain_terms, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(weights, plain, rtol=1e-5, atol=1e-7)


def test_a_penalty_at_an_interval_has_the_same_expectation(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of D on one batch at one state, averaged over an interval of steps."""
    means, seen = [], []
    for interval in (1, 3):
        stage = new_stage(trained, tmp_path, f"penalty.every={interval}", "model.discriminator_output_gain=1")
        micros = stage.inputs(0, batch_of(stage.context, 0))

        def keep(optimizer: Any, what: str, stage: FusionStage = stage) -> Tensor:
            seen.append([p.grad.clone() for p in stage.critic.parameters() if p.grad is not None])
            optimizer.zero_grad()
            return torch.zeros(())

        monkeypatch.setattr(stage.runtime.optimizing, "apply", keep)
        seen.clear()
        for step in range(interval):
            terms = stage.discriminator_step(micros, None, penalised=step == 0)
            assert ("loss/penalty" in terms) == (step == 0)
        means.append([torch.stack(each).mean(0) for each in zip(*seen, strict=True)])
    torch.testing.assert_close(means[1], means[0], rtol=1e-9, atol=1e-14)
    assert not torch.allclose(seen[0][0], seen[1][0]), "the penalty is in the first step only"


def test_a_step_with_an_interval_logs_the_penalty_where_it_is(trained: Trained, tmp_path: Path) -> None:
    stage = new_stage(trained, tmp_path, "penalty.every=2")
    terms = [stage.step(step, batch_of(stage.context, step)) for step in range(3)]
    assert ["loss_weighted/penalty" in each for each in terms] == [True, False, True]


class Waits(TorchDispatchMode):
    """Counts what brings numbers to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        if name in WAITS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def refuse(*_: object) -> None:
    raise AssertionError("brings a tensor to the host")


@pytest.mark.parametrize("options", [(), ("training.micro_batch_size=2",)])
def test_a_step_never_waits_for_the_device(
    trained: Trained, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = new_stage(trained, tmp_path, *options)
    stage.runtime.optimizing.check_at_once = False  # as on a GPU
    batch = batch_of(stage.context, 0)
    for name in ("tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, refuse)
    with Waits() as waits:
        stage.step(0, batch)
        stage.step(1, batch)
        assert not waits.seen
        with pytest.raises(AssertionError, match="to the host"):
            stage.runtime.optimizing.check()
        assert bool(torch.ones(())) and waits.seen, "the counter counts"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_step_never_waits_for_a_gpu(trained: Trained, tmp_path: Path, precision: str) -> None:
    torch.set_default_dtype(torch.float32)
    options = ("training.device=cuda", f"training.mixed_precision={precision}")
    stage = new_stage(trained, tmp_path, *options)
    batch = batch_of(stage.context, 0)
    stage.step(0, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        stage.step(1, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fused", [True, False])
def test_skipped_steps_are_found_later(trained: Trained, tmp_path: Path, fused: bool) -> None:
    """The optimizer skips on the device; who looks after several steps learns the same as who looks after each."""
    told = []
    for at_once in (True, False):
        config = tiny_config(tmp_path / "run", trained.shards, "training.max_skipped_steps=3")
        optimizing = new_setup(config).runtime.optimizing
        optimizing.check_at_once = at_once
        torch.manual_seed(0)
        module = torch.nn.Linear(2, 1)
        optimizer = optimizing.adam(module, OptimizerConfig(fused=fused))
        for factor in (1.0, float("nan"), 2.0, float("inf"), float("nan"), float("nan"), 1.0):
            optimizing.backward(module(torch.ones(1, 2)).sum() * factor)
            optimizing.apply(optimizer, "test")
        if not at_once:
            assert optimizing.failure is None and optimizing.skipped == 0
            optimizing.check()
        told.append((optimizing.failure, optimizing.skipped, optimizing.bad_gradients, module.weight.tolist()))
    assert told[0] == told[1] and told[0][1] == 4 and told[0][0] is not None


def test_training_goes_on_while_a_checkpoint_is_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_default_dtype(torch.float32)
    save, stepped = checkpoint.save, threading.Event()
    step = FusionStage.step

    def slow(folder: Path, number: int, *rest: Any) -> Path:
        if number == 2:
            assert stepped.wait(60), "no step was made while step 2 was being written"
        return save(folder, number, *rest)

    def watched(self: FusionStage, number: int, batch: Any) -> Any:
        terms = step(self, number, batch)
        if number == 3:  # the fourth: the weights are not those of the second any more
            stepped.set()
        return terms

    run = tmp_path / "run"
    options = ("training.fusion_steps=5", "tracking.checkpoint_every=2")
    init = ("--init", trained.run / "pretrain")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", slow)
        patch.setattr(FusionStage, "step", watched)
        assert latentfuse("train", *tiny_arguments(run, trained.shards, *options), *init).code == 0
    other, at_once = tmp_path / "other", "tracking.asynchronous_saves=false"
    assert latentfuse("train", *tiny_arguments(other, trained.shards, *options, at_once), *init).code == 0
    saved = checkpoint.steps(run / "train" / "checkpoints")
    assert [path.name for path in saved] == ["step-00000002", "step-00000004", "step-00000005"]
    for path in saved:
        assert_equal_bits(path, other / "train" / "checkpoints" / path.name)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_save_that_fails_ends_the_run(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: str
) -> None:
    torch.set_default_dtype(torch.float32)
    run, save = tmp_path / "run", checkpoint.save

    def full(folder: Path, number: int, *rest: Any) -> Path:
        if number >= 4:
            raise UserError("the disk is full")
        return save(folder, number, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    options = (f"tracking.asynchronous_saves={asynchronous}", "training.fusion_steps=200")
    result = latentfuse("train", *tiny_arguments(run, trained.shards, *options), "--init", trained.run / "pretrain")
    result.assert_one_line("the disk is full")
    assert "saved" in result.out and checkpoint.newest(run / "train" / "checkpoints")[0].step == 2  # type: ignore[union-attr]
