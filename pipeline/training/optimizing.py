"""Optimizer steps: loss scaling, and steps that are skipped because a gradient is not finite."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from pipeline.config.schema import OptimizerConfig

MIN_LOSS_SCALE = 1e-4
"""A loss scale under this means that every step overflows: the run is lost, and stops."""


class Attempt(NamedTuple):
    """One optimizer step, which the device may have skipped."""

    what: str
    parameters: list[nn.Parameter]
    norms: Tensor
    """Of each parameter's gradient."""
    finite: Tensor
    """Whether they all are: otherwise the step was skipped."""


class OptimizerSteps:
    """One per process. A step is skipped on all ranks or on none: they hold the same averaged gradients."""

    def __init__(
        self, accelerator: Accelerator, max_skipped: int, compile_mode: str, say: Callable[[str], None]
    ) -> None:
        self.skipped = 0
        """Steps of this run, since its beginning."""
        self.failure: str | None = None
        """Why training cannot go on, once it cannot; alike on every rank."""
        self.bad_gradients: list[str] = []
        """Parameters whose gradient was not finite in the last step that was skipped."""
        self.check_at_once = accelerator.device.type != "cuda"  # there is nothing to wait for
        self._accelerator, self._max_skipped, self._say = accelerator, max_skipped, say
        # A CUDA graph's gradients lie in its own memory, which the next micro-batch overwrites: they are added to ours.
        self._keeps_gradients = compile_mode == "reduce-overhead"
        self._names: dict[int, str] = {}
        self._skipped_in_a_row: Counter[str] = Counter()
        self._attempts: list[Attempt] = []

    def adam(
        self, module: nn.Module, config: OptimizerConfig, learning_rate: float | None = None
    ) -> AcceleratedOptimizer:
        """Adam over the parameters of `module`, which is not wrapped, at the configured `learning_rate` or another."""
        self._names |= {id(parameter): name for name, parameter in module.named_parameters()}
        if self._keeps_gradients:
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
        adam = torch.optim.Adam(
            module.parameters(),
            lr=learning_rate or config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=config.fused,
        )
        return self._accelerator.prepare_optimizer(adam)

    def backward(self, loss: Tensor) -> None:
        """Backward of a scalar, times the loss scale under fp16. A loss that is not finite makes every gradient NaN.

        So the average over ranks is NaN on all of them, and all skip the step, even where the gradient of an infinite
        term is finite.
        """
        self._accelerator.backward(loss * (1 + 0 * loss.detach()))

    def apply(self, optimizer: AcceleratedOptimizer, what: str) -> Tensor:
        """One optimizer step, unless a gradient is not finite; then the gradients are cleared.

        The fused optimizer decides on the device, and `check` finds out later.

        Args:
            what: for messages.

        Returns:
            The norm of the gradients, a float32 scalar.
        """
        self._accelerator.unscale_gradients(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(p.grad) for p in parameters])
        norm: Tensor = torch.linalg.vector_norm(norms)
        attempt = Attempt(what, parameters, norms, torch.isfinite(norm))
        if self._accelerator.scaler is not None:
            optimizer.step()  # the scaler skips the step and lowers the scale
        elif optimizer.defaults["fused"]:
            optimizer.optimizer.found_inf = (~attempt.finite).float()  # as a scaler would set it
            optimizer.step()
        elif attempt.finite:  # waits for the device
            optimizer.step()
        optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        self._attempts.append(attempt)
        if self.check_at_once:
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
                self._count_skipped(attempt)
        if self.failure is None and self.loss_scale < MIN_LOSS_SCALE:
            what = attempts[-1].what
            self.failure = f"{what}: the fp16 loss scale fell to {self.loss_scale:g}; use mixed_precision bf16 or no"

    @property
    def skipping(self) -> bool:
        """Whether the last checked step of any optimizer was skipped; alike on all ranks."""
        return any(self._skipped_in_a_row.values())

    def _count_skipped(self, attempt: Attempt) -> None:
        what, norms = attempt.what, attempt.norms.tolist()
        self.skipped += 1
        self.bad_gradients = [
            self._names[id(p)] for p, norm in zip(attempt.parameters, norms, strict=True) if not math.isfinite(norm)
        ] or ["all together"]
        if self._accelerator.scaler is None:  # a scaler tries larger scales until one overflows: that is no news
            self._say(f"{what}: a gradient is not finite ({self.bad_gradients[0]}); the step is not applied")
        if self._skipped_in_a_row[what] >= self._max_skipped:
            self.failure = (
                f"{what}: the gradient was not finite {self._max_skipped} times in a row; the run stops. "
                "Resume from the last checkpoint with a lower learning_rate, or without mixed precision"
            )

    @property
    def loss_scale(self) -> float:
        """The scale of fp16 losses; 1 in other precisions."""
        scaler = self._accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def scaler_state(self) -> dict[str, Any]:
        """Of the fp16 loss scaler; empty in other precisions."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(state)
