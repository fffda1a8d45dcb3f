"""Processes, devices and precision: the sole owner of AMP and of DDP wrapping.

`accelerate` does the work; what it hides and what matters here is spelled out at the lines concerned.
"""

import math
import os
import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedDataParallelKwargs, GradScalerKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from pipeline.common import signals
from pipeline.common.devices import check_device, keep_freed_memory
from pipeline.config.schema import OptimizerConfig, SpeedConfig, TrainingConfig
from pipeline.data.images import normalise
from pipeline.data.loading.loader import MicroBatch
from pipeline.training.ranks import Ranks

MIN_LOSS_SCALE = 1e-4
"""A loss scale under this means that every step overflows: the run is lost, and stops."""

COLLECTIVE_PATIENCE = timedelta(minutes=30)
"""How long a collective may wait for a rank that lives but does not come."""

M = TypeVar("M", bound=nn.Module)


class Attempt(NamedTuple):
    """One optimizer step, as far as the device knows."""

    what: str
    parameters: list[nn.Parameter]
    norms: Tensor
    """Of each parameter's gradient."""
    finite: Tensor
    """Whether they all are: otherwise the step was skipped."""


class Runtime:
    """One per process. Every rank constructs it, before any module."""

    def __init__(self, config: TrainingConfig, speed: SpeedConfig | None = None) -> None:
        precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        check_device(config.device, precision)
        with signals.leaving():  # the first ranks wait here for the last
            self.accelerator = Accelerator(
                mixed_precision=precision,
                cpu=config.device == "cpu",
                kwargs_handlers=[
                    # BatchNorm's running statistics are recomputed before use (averaging.py), never sent.
                    DistributedDataParallelKwargs(broadcast_buffers=False),
                    GradScalerKwargs(init_scale=2.0**14, growth_interval=1000),
                    InitProcessGroupKwargs(timeout=COLLECTIVE_PATIENCE),
                ],
            )
            self.ranks = Ranks(self.accelerator.process_index, self.accelerator.num_processes)
        self.precision = precision
        self.skipped_steps = 0
        self.failure: str | None = None
        """Why training cannot go on, once it cannot; alike on every rank."""
        self.bad_gradients: list[str] = []
        """Parameters whose gradient was not finite in the last step that was skipped."""
        self._names: dict[int, str] = {}
        self._skipped_in_a_row: Counter[str] = Counter()
        self._max_skipped = config.max_skipped_steps
        self._attempts: list[Attempt] = []
        self.speed = speed or SpeedConfig()
        on_gpu = self.device.type == "cuda"
        self.checks_at_once = not on_gpu  # there is nothing to wait for
        channels_last = on_gpu if self.speed.channels_last is None else self.speed.channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if self.speed.keep_freed_memory and not on_gpu:
            keep_freed_memory()
        self._frozen_format = torch.contiguous_format if self.speed.channels_last is False else torch.channels_last
        # A CUDA graph's gradients lie in its own memory, which the next micro-batch overwrites: they are added to ours.
        self._keeps_gradients = self.speed.compile == "reduce-overhead"
        torch.backends.cudnn.benchmark = self.speed.cudnn_benchmark
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.speed.tf32

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def say(self, message: str) -> None:
        """Print a line, on the main rank only. Where nobody reads on, as behind `| head`, the run is saved and ends."""
        if not self.ranks.is_main:
            return
        try:
            print(message, flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            signals.request("a closed pipe behind its output")

    def place(self, module: M) -> M:
        """Move to the device, laid out as images are."""
        return module.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]

    def place_frozen(self, module: M) -> M:
        """The same for a network without double backward, which is what channels last slows down on CPUs."""
        return module.to(device=self.device, memory_format=self._frozen_format)  # type: ignore[call-overload, no-any-return]

    def compile(self, *modules: nn.Module) -> None:
        """Compile what these compute, where the configuration says so; they stay the same objects."""
        if self.speed.compile != "no":
            for module in modules:
                module.compile(mode=self.speed.compile, dynamic=False)

    def uncompiled(self) -> AbstractContextManager[Any]:
        """For all but steps: other batches would be compiled anew, and a CUDA graph writes over its last results."""
        return nullcontext() if self.speed.compile == "no" else torch.compiler.set_stance("force_eager")

    def images(self, batch: MicroBatch) -> Tensor:
        """(m, 3, S, S) in [-1, 1] on the device, mirrored where the batch says so, without waiting for a GPU."""
        sent = batch.images.to(self.device, non_blocking=True)
        if batch.flips is not None:
            flips = self._sent(torch.from_numpy(batch.flips))
            sent = torch.where(flips[:, None, None, None], sent.flip(-1), sent)
        return normalise(sent.contiguous(memory_format=self.memory_format))

    def numbers(self, values: Tensor) -> Tensor:
        """Small numbers from the host -> torch's default dtype on the device, without waiting for it."""
        return self._sent(values.to(torch.get_default_dtype()))

    def _sent(self, values: Tensor) -> Tensor:
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def wrap(self, module: M) -> M:
        """Wrap in DDP where there are several ranks. Its forward runs under autocast."""
        wrapped: M = self.accelerator.prepare_model(module)
        return wrapped

    def optimizer(
        self, module: nn.Module, config: OptimizerConfig, learning_rate: float | None = None
    ) -> AcceleratedOptimizer:
        """Adam over the parameters of `module`, which is not wrapped, at the configured `learning_rate` or another."""
        self._names |= {id(parameter): name for name, parameter in module.named_parameters()}
        betas = (config.beta1, config.beta2)
        rate = learning_rate or config.learning_rate
        if self._keeps_gradients:
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
        adam = torch.optim.Adam(module.parameters(), lr=rate, betas=betas, fused=config.fused)
        return self.accelerator.prepare_optimizer(adam)

    def free_memory(self) -> None:
        """Let go of the networks and optimizers of a stage that is done: accelerate keeps what it has prepared."""
        self._names.clear()
        self.accelerator.free_memory()

    def autocast(self) -> AbstractContextManager[Any]:
        """For the calls of modules that `wrap` did not see."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def accumulating(self, module: nn.Module, more: bool) -> AbstractContextManager[Any]:
        """Keep DDP from averaging gradients while `more` micro-batches of the step follow."""
        context: AbstractContextManager[Any] = self.accelerator.no_sync(module if more else None)
        return context

    def backward(self, loss: Tensor) -> None:
        """Backward of a scalar, times the loss scale under fp16. A loss that is not finite makes every gradient NaN.

        So the average over ranks is NaN on all of them, and all skip the step, even where the gradient of an infinite
        term is finite.
        """
        self.accelerator.backward(loss * (1 + 0 * loss.detach()))

    def apply(self, optimizer: AcceleratedOptimizer, what: str) -> Tensor:
        """One optimizer step, unless a gradient is not finite; then the gradients are cleared.

        Every rank holds the same averaged gradients, so all of them decide alike; the fused optimizer decides on the
        device, and `check` finds out later.

        Returns:
            The norm of the gradients, a float32 scalar.
        """
        self.accelerator.unscale_gradients(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm([p.grad for p in parameters]))
        norm: Tensor = torch.linalg.vector_norm(norms)
        attempt = Attempt(what, parameters, norms, torch.isfinite(norm))
        if self.accelerator.scaler is not None:
            optimizer.step()  # the scaler skips the step and lowers the scale
        elif optimizer.defaults["fused"]:
            optimizer.optimizer.found_inf = (~attempt.finite).float()  # as a scaler would set it
            optimizer.step()
        elif attempt.finite:  # waits for the device
            optimizer.step()
        optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        self._attempts.append(attempt)
        if self.checks_at_once:
            self.check()
        return norm

    def check(self) -> None:
        """Find out which steps were skipped since the last call, and whether training can go on; alike on all ranks.

        After `max_skipped_steps` of a kind in a row, or when the loss scale has collapsed, `failure` says so. Waits for
        a GPU: called once per log interval there.
        """
        attempts, self._attempts = self._attempts, []
        if not attempts:
            return
        for attempt, finite in zip(attempts, torch.stack([a.finite for a in attempts]).tolist(), strict=True):
            self._skipped_in_a_row[attempt.what] = 0 if finite else self._skipped_in_a_row[attempt.what] + 1
            if not finite:
                self._skipped(attempt)
        if self.failure is None and self.loss_scale < MIN_LOSS_SCALE:
            what = attempts[-1].what
            self.failure = f"{what}: the fp16 loss scale fell to {self.loss_scale:g}; use mixed_precision bf16 or no"

    @property
    def skipping(self) -> bool:
        """Whether the last step that was looked at was skipped, of any optimizer; alike on all ranks."""
        return any(self._skipped_in_a_row.values())

    def _skipped(self, attempt: Attempt) -> None:
        what, norms = attempt.what, attempt.norms.tolist()
        self.skipped_steps += 1
        self.bad_gradients = [
            self._names[id(p)] for p, norm in zip(attempt.parameters, norms, strict=True) if not math.isfinite(norm)
        ] or ["all together"]
        if self.accelerator.scaler is None:  # which tries larger scales until one overflows
            self.say(f"{what}: a gradient is not finite ({self.bad_gradients[0]}); the step is not applied")
        if self._skipped_in_a_row[what] >= self._max_skipped:
            self.failure = (
                f"{what}: the gradient was not finite {self._max_skipped} times in a row; the run stops. "
                "Resume from the last checkpoint with a lower learning_rate, or without mixed precision"
            )

    @property
    def loss_scale(self) -> float:
        """The scale of fp16 losses; 1 in other precisions."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, on every rank."""
        reduced: Tensor = self.accelerator.reduce(values, reduction="sum")
        return reduced

    def close(self) -> None:
        """Leave the process group, in order: only when all ranks do."""
        self.accelerator.end_training()

    def scaler_state(self) -> dict[str, Any]:
        """Of the fp16 loss scaler; empty in other precisions."""
        scaler = self.accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)
