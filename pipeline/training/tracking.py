"""What is seen of a run: means of every term, reduced across ranks, in TensorBoard and on the terminal."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms.v2.functional import pil_to_tensor

from pipeline.data.shards import os_errors_named
from pipeline.errors import UserError
from pipeline.training.runtime import Runtime

SHOWN = ("loss/total", "loss/autoencoder", "speed/images_per_second")
"""What a line on the terminal tells; TensorBoard has the rest."""


class Tracker:
    """Collects scalars on the device and sends them off once per log interval; only the main rank writes."""

    def __init__(self, folder: Path, runtime: Runtime, stage: str, step: int, total_steps: int) -> None:
        self.runtime, self.stage, self.total_steps = runtime, stage, total_steps
        # Events after the step that a run resumes from belong to a past that did not happen.
        self.folder, self.writer = folder, None
        if runtime.is_main:
            threading.excepthook = _leave_disk_errors_to_the_next_call
            with os_errors_named(folder):
                self.writer = SummaryWriter(str(folder), purge_step=step + 1)
        self._start_interval()

    def add(self, terms: Mapping[str, Tensor], images: int, waited_seconds: float) -> None:
        """Take in the scalars of one step; `images` over all ranks."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        self._steps += 1
        self._images += images
        self._waited += waited_seconds

    def flush(self, step: int, others: Mapping[str, float]) -> dict[str, float]:
        """Reduce, write and print the means since the last call, and `others`, alike on every rank, as they are.

        Raises:
            UserError: naming the term and the step, if a mean is not finite; or if the disk says no.
        """
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        values = self.runtime.mean(sums).cpu() / self._steps
        means = {**dict(zip(names, values.tolist(), strict=True)), **others}
        seconds = time.perf_counter() - self._since
        means["speed/images_per_second"] = self._images / seconds
        means["speed/data_wait_share"] = self._waited / seconds
        means["amp/loss_scale"] = self.runtime.loss_scale
        means["amp/skipped_steps"] = float(self.runtime.skipped_steps)
        self._start_interval()
        if self.writer:
            with os_errors_named(self.folder):
                for name, value in means.items():
                    self.writer.add_scalar(name, value, step)
                self.writer.flush()
            shown = "  ".join(f"{name.split('/')[-1]} {means[name]:.4g}" for name in SHOWN if name in means)
            self.runtime.say(f"{self.stage} {step}/{self.total_steps}  {shown}")
        bad = [name for name in names if name.startswith("loss/") and not torch.isfinite(torch.tensor(means[name]))]
        if bad:
            raise UserError(f"{self.stage}: {', '.join(bad)} not finite at or before step {step}; the run stops")
        return means

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """Show an RGB image."""
        if self.writer:
            with os_errors_named(self.folder):
                self.writer.add_image(name, pil_to_tensor(image), step)

    def close(self) -> None:
        if self.writer:
            with os_errors_named(self.folder):
                self.writer.close()

    def _start_interval(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._images = 0
        self._waited = 0.0
        self._since = time.perf_counter()


def _leave_disk_errors_to_the_next_call(failed: threading.ExceptHookArgs) -> None:
    """The writer's thread keeps its error for whoever writes next; Python would print a traceback besides."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)
