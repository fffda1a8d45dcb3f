"""What TensorBoard shows of a stage: docs/tensorboard.md leads through it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.transforms.v2.functional import pil_to_tensor

from pipeline.common.files import os_errors_named
from pipeline.config.load import dump
from pipeline.config.schema import Config

HELD_OUT = ("held_out/L1", "held_out/SSIM", "held_out/sharpness")
FUSION = ("fusion/half_way_ghost", "fusion/half_way_sharpness", "fusion/own_share", "fusion/leakage")
RESULTS = (*FUSION, *HELD_OUT)
"""What HPARAMS shows beside the configuration, whatever the stage: TensorBoard has one list for all of them."""
LAYOUT: dict[str, dict[str, tuple[str, ...]]] = {
    "1. fusion of held-out faces": {
        "ghost half-way (lower is better)": FUSION[:1],
        "sharpness half-way (1: as A' and B')": FUSION[1:2],
        "own share of elements (to 1)": FUSION[2:3],
        "leakage of elements (to 0)": FUSION[3:],
    },
    "2. reconstruction of held-out faces": {
        "L1 (to 0)": HELD_OUT[:1],
        "SSIM (to 1)": HELD_OUT[1:2],
        "sharpness (1: as the photographs)": HELD_OUT[2:],
    },
    "3. critic": {
        "Wasserstein estimate: real less fused": ("critic/wasserstein",),
        "scores": ("critic/real", "critic/fake"),
        "gradient penalty": ("loss/penalty",),
    },
    "4. losses": {
        "what each term adds to the total": ("loss_weighted/",),
        "content and style by layer": ("loss_layer/",),
    },
    "5. optimizers and speed": {
        "norms of gradients": ("gradient_norm/",),
        "learning rates": ("learning_rate/",),
        "images per second": ("speed/images_per_second",),
        "share of time waiting for data": ("speed/data_wait_share",),
    },
}
"""The tab CUSTOM SCALARS: heading -> chart -> beginnings of tags. Alike in all stages, as TensorBoard merges them."""
HOW_TO_READ = """
CUSTOM SCALARS has the fusion first. `held_out/` and `fusion/` are measured on test images every `tracking.image_every`
steps, the rest are means over `tracking.log_every` steps of training.

| number | what it says |
|---|---|
| `fusion/half_way_ghost` | 1: half-way is a double exposure of both faces; 0: it is a face of its own |
| `fusion/half_way_sharpness` | edges half-way over those of both reconstructions: 1 is as sharp, 0.5 a blend |
| `fusion/own_share` | of the change of a layer, what its own element causes: from 0.2 (chance, with 5 elements) to 1 |
| `fusion/leakage` | of the change by an element, what falls on other layers: from 0.8 (chance) to 0 |
| `held_out/L1`, `SSIM`, `sharpness` | of reconstructions, against the photographs |
| `critic/wasserstein` | how well D tells fused faces from real ones; steady is good, at 0 D has stopped learning |
| `loss/total` | **no measure of quality**: its adversarial part is a score of D, which has no fixed zero \
and often rises while all is well. Look at its terms, `loss_weighted/` |
"""
HYPERPARAMETERS = (
    *("seed", "stage", "data.image_size", "model.", "perceptual.", "penalty."),
    *("fusion.", "loss_weights.", "optimizer.", "training."),
)
"""Beginnings of what HPARAMS shows of a configuration: the rest changes no result. TEXT has all."""


class Board:
    """The events of one stage, in a folder of their own.

    Every call raises UserError if they cannot be written.
    """

    def __init__(self, folder: Path, config: Config, stage: str, step: int) -> None:
        self.folder = folder
        started, self._ended = _hyperparameters(config, stage)
        with os_errors_named(folder):
            # Hide the events of steps that the resumed run makes again.
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)
            self._writer.add_custom_scalars(_charts())
            for summary in started:
                self._add(summary)
            if not step:  # once
                self._writer.add_text("1. how to read this board", HOW_TO_READ)
            indented = "".join(f"    {line}\n" for line in dump(config).splitlines())  # code, in Markdown
            self._writer.add_text("2. configuration", indented, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with os_errors_named(self.folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def pictures(self, pictures: Mapping[str, Image], step: int) -> None:
        with os_errors_named(self.folder):
            for name, image in pictures.items():
                self._writer.add_image(name, pil_to_tensor(image), step)

    def close(self, finished: bool) -> None:
        with os_errors_named(self.folder):
            if finished:
                self._add(self._ended)
            self._writer.close()

    def _add(self, summary: Any) -> None:
        events: Any = self._writer
        events.file_writer.add_summary(summary)


def _charts() -> dict[str, dict[str, list[Any]]]:
    """`LAYOUT` as TensorBoard takes it."""
    return {
        heading: {title: ["Multiline", list(tags)] for title, tags in charts.items()}
        for heading, charts in LAYOUT.items()
    }


def _hyperparameters(config: Config, stage: str) -> tuple[list[Any], Any]:
    """What HPARAMS is told at the start of a stage, and once it is finished; it reads the results from the scalars."""
    values = flat(config) | {"stage": stage}
    shown = {name: value for name, value in values.items() if name.startswith(HYPERPARAMETERS)}
    experiment, start, end = hparams(shown, dict.fromkeys(RESULTS, 0.0))
    return [experiment, start], end


def flat(config: Config) -> dict[str, str | int | float]:
    """`training.pretrain_steps` and so on; what is null is left out, and what is no number is text."""
    found: dict[str, str | int | float] = {}

    def take(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                take(f"{name}.{key}" if name else key, inner)
        elif value is not None:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            found[name] = value if is_number else str(value)

    take("", config.as_dict())
    return found
