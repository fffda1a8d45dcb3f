"""Processes, devices and precision: the only owner of mixed precision and of DDP wrapping.

`accelerate` does the work; what it hides and what matters here is spelled out at the lines concerned.
Optimizer steps are in `optimizing`, agreement between ranks in `ranks`.
"""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradScalerKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from pipeline.common import signals
from pipeline.common.devices import check_compiler, check_device, keep_freed_memory
from pipeline.config.schema import SpeedConfig, TrainingConfig
from pipeline.data.images import normalise
from pipeline.data.loading.loader import MicroBatch
from pipeline.training.launcher import read_launcher
from pipeline.training.optimizing import OptimizerSteps
from pipeline.training.ranks import COLLECTIVE_PATIENCE, Ranks, all_come
from pipeline.training.status import Status

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class Runtime:
    """One per process. Every rank constructs it, before any module.

    Raises:
        UserError: if the device, precision or compiler cannot be had here, or the launcher's environment is wrong.
        LostRank: if the other ranks do not come.
    """

    def __init__(self, config: TrainingConfig, speed: SpeedConfig | None = None) -> None:
        self.speed = speed or SpeedConfig()
        launch = self.launch = read_launcher()
        self.precision = config.mixed_precision or launch.precision
        check_device(config.device, self.precision)
        if self.speed.compile != "no":
            check_compiler(config.device)
        with signals.leaving(), all_come(launch, COLLECTIVE_PATIENCE):  # the first ranks wait here for the last
            self.accelerator = Accelerator(
                mixed_precision=self.precision,
                cpu=config.device == "cpu",
                kwargs_handlers=[
                    # BatchNorm's running statistics are recomputed before use (ema.py), never sent.
                    DistributedDataParallelKwargs(broadcast_buffers=False),
                    GradScalerKwargs(init_scale=2.0**14, growth_interval=1000),
                    InitProcessGroupKwargs(timeout=COLLECTIVE_PATIENCE),
                ],
            )
            self.ranks = Ranks(self.accelerator.process_index, self.accelerator.num_processes)
        self.device: torch.device = self.accelerator.device
        self.status: Status | None = None
        """Of the job, where there is one, on the main rank."""
        self.optimizing = OptimizerSteps(self.accelerator, config.max_skipped_steps, self.speed.compile, self.say)
        on_gpu = self.device.type == "cuda"
        channels_last = on_gpu if self.speed.channels_last is None else self.speed.channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if self.speed.keep_freed_memory and not on_gpu:
            keep_freed_memory()
        torch.backends.cudnn.benchmark = self.speed.cudnn_benchmark
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.speed.tf32

    def say(self, message: str) -> None:
        """Print a line, on the main rank only.

        If nobody can read it, behind `| head` or after the loss of the terminal, the run is saved and ends.
        """
        if not self.ranks.is_main:
            return
        try:
            print(message, flush=True)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            signals.request("a closed pipe behind its output")

    def to_device(self, module: M, *, frozen: bool = False) -> M:
        """Move to the device, with the memory layout of the images.

        A frozen network is channels last unless the configuration forbids it: what channels last slows down on CPUs is
        the double backward of D's penalty, and a frozen network has none.
        """
        layout = self.memory_format
        if frozen and self.speed.channels_last is not False:
            layout = torch.channels_last
        return module.to(device=self.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def compile(self, *modules: nn.Module) -> None:
        """Compile what these compute, if the configuration says so; they stay the same objects."""
        if self.speed.compile != "no":
            for module in modules:
                module.compile(mode=self.speed.compile, dynamic=False)

    def uncompiled(self) -> AbstractContextManager[Any]:
        """For all but steps: other batches would be compiled anew, and a CUDA graph overwrites its last results."""
        return nullcontext() if self.speed.compile == "no" else torch.compiler.set_stance("force_eager")

    def images(self, batch: MicroBatch) -> Tensor:
        """(m, 3, S, S) in [-1, 1] on the device, mirrored where the batch says so, without waiting for a GPU."""
        images = batch.images.to(self.device, non_blocking=True)
        if batch.flips is not None:
            flips = self.send(torch.from_numpy(batch.flips))
            images = torch.where(flips[:, None, None, None], images.flip(-1), images)
        return normalise(images.contiguous(memory_format=self.memory_format))

    def send(self, values: Tensor) -> Tensor:
        """A small tensor of the host on the device, without waiting for a GPU."""
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def wrap(self, module: M) -> M:
        """Wrap in DDP where there are several ranks. Its forward runs under autocast."""
        wrapped: M = self.accelerator.prepare_model(module)
        return wrapped

    def autocast(self) -> AbstractContextManager[Any]:
        """For the calls of modules that `wrap` did not see."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def accumulating(self, module: nn.Module, micros: Sequence[T]) -> Iterator[T]:
        """The micro-batches of a step, one by one; DDP averages the gradients of `module` over ranks at the last only.

        So each micro-batch needs one forward of the wrapped `module`, and one backward.
        """
        for number, micro in enumerate(micros, 1):
            with self.accelerator.no_sync(module if number < len(micros) else None):
                yield micro

    def free_memory(self) -> None:
        """Let go of the networks and optimizers of a stage that is done: accelerate keeps what it has prepared."""
        self.accelerator.free_memory()

    def close(self) -> None:
        """Leave the process group, in order: only when all ranks do."""
        self.accelerator.end_training()
