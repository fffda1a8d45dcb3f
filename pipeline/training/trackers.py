"""Trackers besides TensorBoard: accelerate's own, of which each is a library that the user installs."""

import importlib.util
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL.Image import Image

from pipeline.common import files
from pipeline.common.errors import UserError, one_line
from pipeline.config.schema import Config
from pipeline.training.board import Board, flat

BOARD = "tensorboard"
PROJECT = "latentfuse"
"""Where WANDB_PROJECT and the like do not say otherwise."""
PICTURES = ("wandb",)
"""Trackers that get pictures, too."""
IDENTITY = "tracking_id"
"""The file in the run folder that tells this run from another of the same name, so that a resumed one goes on."""


class Shows(Protocol):
    """TensorBoard or another tracker, on the main rank."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers by their names."""

    def pictures(self, pictures: Mapping[str, Image], step: int) -> None:
        """Show RGB images by their names, if it can."""

    def close(self, finished: bool) -> None:
        """The last call; `finished`: the stage has made its last step."""


def check_installed(trackers: Iterable[str]) -> None:
    """Raises UserError for one that is not."""
    for name in trackers:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without an origin it is a folder of that name, as wandb makes one
            package = name.replace("_", "-")
            raise UserError(f"tracking.trackers: {name} is not installed; pip install {package}, or leave it out")


def open_trackers(config: Config, stage: str, step: int, say: Callable[[str], None]) -> list[Shows]:
    """Those that `tracking.trackers` names, each once.

    Args:
        step: the last one that is done; what was logged after it is made again.
        say: prints a line.

    Raises:
        UserError: if one cannot be started.
    """
    opened: list[Shows] = []
    for name in dict.fromkeys(config.tracking.trackers):
        if name == BOARD:
            opened.append(Board(config.run_dir / BOARD / stage, config, stage, step))
        else:
            opened.append(Service(name, config, stage, say))
    return opened


class Service:
    """A tracker of accelerate's. One that fails while training goes on is left out from there on, and says so."""

    def __init__(self, name: str, config: Config, stage: str, say: Callable[[str], None]) -> None:
        self.name, self._say = name, say
        self._tracker: GeneralTracker | None = None
        identity = _identity(config.run_dir)
        check_installed([name])
        kind = LOGGER_TYPE_TO_CLASS[name]
        project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)
        where = [str(config.run_dir)] if kind.requires_logging_directory else []
        try:
            tracker = kind(project, *where, **_options(name, config.run_dir, stage, identity))
            tracker.start()
            tracker.store_init_configuration(flat(config) | {"stage": stage})
        except Exception as error:  # of a library that is not ours
            raise UserError(_described(name, error)) from error
        self._tracker = tracker

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._call(lambda tracker: tracker.log(dict(values), step=step))

    def pictures(self, pictures: Mapping[str, Image], step: int) -> None:
        if self.name in PICTURES:
            self._call(lambda tracker: tracker.log_images({n: [image] for n, image in pictures.items()}, step=step))

    def close(self, finished: bool) -> None:
        self._call(lambda tracker: tracker.finish())

    def _call(self, work: Callable[[Any], None]) -> None:
        if self._tracker is None:
            return
        try:
            work(self._tracker)
        except Exception as error:  # hours of training are worth more than a line on a service
            self._tracker = None
            self._say(f"{_described(self.name, error)}; training goes on without it")


def _described(name: str, error: Exception) -> str:
    return one_line(f"tracking.trackers: {name}: {str(error).strip() or type(error).__name__}")


def _options(name: str, run_dir: Path, stage: str, identity: str) -> dict[str, Any]:
    """What lets a resumed stage go on in the same place; other trackers begin a new one at each start."""
    called = f"{run_dir.resolve().name} {stage}"
    if name == "wandb":
        return {"name": called, "id": f"{identity}-{stage}", "resume": "allow", "dir": str(run_dir)}
    if name == "trackio":
        return {"name": f"{called} {identity}", "resume": "allow"}
    return {}


def _identity(run_dir: Path) -> str:
    """Of this run: kept in its folder from the first start on.

    Raises:
        UserError: if it cannot be written.
    """
    path = run_dir / IDENTITY
    with files.os_errors_named(path):
        try:
            known = files.read_bytes(path, 100).decode(errors="replace").strip()
        except FileNotFoundError:
            known = ""
        if not re.fullmatch("[0-9a-f]{8}", known):
            known = secrets.token_hex(4)
            files.write_text(path, f"{known}\n")
    return known
