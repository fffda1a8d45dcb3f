"""What a run shows of itself: means of every term over all ranks, in TensorBoard and on the terminal."""

import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.training.runtime import Runtime
from pipeline.training.stage import Shown
from pipeline.training.trackers import Shows, open_trackers

SHOWN = {
    "pretrain": ("loss/autoencoder", "loss/ssim"),
    "train": ("loss/adversarial", "loss/content", "loss/style", "loss/reconstruction", "critic/wasserstein"),
}
"""Terms on the terminal, by stage; trackers have all."""


class Tracker:
    """Collects scalars on the device and sends them off once per log interval; only the main rank writes.

    Constructed and flushed by every rank. A write that fails on the main rank stops all of them.
    """

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        stage: str,
        step: int,
        total_steps: int,
        steps_per_epoch: float = math.inf,
    ) -> None:
        self.config, self.runtime, self.stage, self.total_steps = config, runtime, stage, total_steps
        self.steps_per_epoch = steps_per_epoch
        self.saved = step
        """The step of the newest checkpoint, 0 if there is none: for the status."""
        self._step = step
        self._trackers: list[Shows] = []
        """Of the main rank."""
        self._bar: Progress | None = None
        runtime.ranks.on_main(lambda: self._open(step))
        self._start_interval()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this block as waiting for data."""
        asked = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - asked

    def add(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Take in the scalars of one step; `images` over all ranks. What is not finite is left out of the means."""
        values = torch.stack([value.detach().float() for value in terms.values()])  # few operations for many terms
        finite = torch.isfinite(values)
        sums_and_counts = torch.stack([torch.where(finite, values, 0.0), finite.float()], dim=1)
        names = tuple(terms)
        self._sums[names] = self._sums.get(names, 0) + sums_and_counts
        self._steps += 1
        self._images += images
        if self._bar is not None:
            self._bar.advance(TaskID(0))

    def flush(self, step: int, others: Mapping[str, float]) -> dict[str, float]:
        """Reduce, write and print the means since the last call, and `others`, alike on every rank, as they are.

        Raises:
            UserError: if it cannot be written.
        """
        if not self._steps:
            return {}
        self.runtime.optimizing.check()
        totals: dict[str, Tensor] = {}
        for group, sums_and_counts in self._sums.items():
            for name, sum_and_count in zip(group, sums_and_counts, strict=True):
                totals[name] = totals.get(name, 0) + sum_and_count
        names = sorted(totals)
        sums, counts = self.runtime.accelerator.reduce(torch.stack([totals[name] for name in names])).cpu().unbind(1)
        means = {**dict(zip(names, (sums / counts).tolist(), strict=True)), **others}
        seconds = time.perf_counter() - self._since
        means["speed/images_per_second"] = self._images / seconds
        seconds_left = (self.total_steps - step) * seconds / self._steps
        means["speed/data_wait_share"] = self._waited / seconds
        means |= self._precision()
        self._start_interval()
        self._step = step
        self.runtime.ranks.on_main(lambda: self._write(means, step, seconds_left))
        return means

    def show(self, shown: Shown, step: int) -> None:
        """Hand on what held-out faces say; on the main rank.

        Raises:
            UserError: if it cannot be written.
        """
        for tracker in self._trackers:
            tracker.scalars(shown.measures, step)
            tracker.pictures(shown.pictures, step)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        with ExitStack() as each:  # one that fails leaves none of the others open
            for tracker in self._trackers:
                each.callback(tracker.close, self._step >= self.total_steps)

    def _open(self, step: int) -> None:
        threading.excepthook = _leave_disk_errors_to_the_next_call
        self._trackers = open_trackers(self.config, self.stage, step, self.runtime.say)
        if sys.stdout.isatty():
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "left")
            self._bar = Progress(*columns, transient=True)
            self._bar.add_task(self.stage, total=self.total_steps, completed=step)
            self._bar.start()

    def _write(self, means: Mapping[str, float], step: int, seconds_left: float) -> None:
        for tracker in self._trackers:
            tracker.scalars(means, step)
        rate = means["speed/images_per_second"]
        width = len(str(self.total_steps))
        left = str(timedelta(seconds=round(seconds_left)))
        where = f"{self.stage} {step}/{self.total_steps}"
        cells = [f"{where:<{len(self.stage) + 2 + 2 * width}}", f"{left:>8} left", f"{rate:7.1f} images/s"]
        if math.isfinite(self.steps_per_epoch):
            cells.insert(1, f"epoch {step / self.steps_per_epoch:.1f}")
        rates = [value for name, value in means.items() if name.startswith("learning_rate/")]
        cells += [f"rate {value:.1e}" for value in rates[:1]]
        cells += [f"{name.split('/')[-1]} {means[name]:9.3g}" for name in SHOWN.get(self.stage, ()) if name in means]
        self.runtime.say("  ".join(cells))
        if self.runtime.status is not None:
            progress = {
                "stage": self.stage,
                "step": step,
                "total": self.total_steps,
                "images_per_second": round(rate, 2),
            }
            self.runtime.status.tell(progress | {"seconds_left": round(seconds_left), "saved_step": self.saved})

    def tell_saved(self, step: int) -> None:
        """A checkpoint of this step is whole."""
        self.saved = step
        if self.runtime.status is not None and self.runtime.ranks.is_main:
            self.runtime.status.tell({"saved_step": step})

    def _precision(self) -> dict[str, float]:
        """Of fp16 the loss scale; skipped steps under fp16, and elsewhere once there are any."""
        optimizing = self.runtime.optimizing
        scaled = self.runtime.accelerator.scaler is not None
        shown = {"amp/loss_scale": optimizing.loss_scale} if scaled else {}
        return shown | ({"amp/skipped_steps": float(optimizing.skipped)} if scaled or optimizing.skipped else {})

    def _start_interval(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        """Sums and counts, (terms, 2), of the terms of these names."""
        self._steps = self._images = 0
        self._waited = 0.0
        self._since = time.perf_counter()


def _leave_disk_errors_to_the_next_call(failed: threading.ExceptHookArgs) -> None:
    """The writer's thread keeps its error and raises it at the next write; Python would print a traceback, too."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)
