"""Tiny shards, configurations and runs, for tests of training, bundles and the command line."""

import contextlib
import io
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.cli import app as cli
from pipeline.cli import workflow
from pipeline.config import load as configuration
from pipeline.config.schema import Config
from pipeline.data.loading.loader import MicroBatch
from pipeline.data.shards.writing import write_shards
from pipeline.training import checkpoint, context
from pipeline.training.runtime import Runtime

torch.set_num_threads(1)  # networks this small only lose by more

PATIENCE = 300.0
"""Seconds to wait for what should come at once. A busy machine may take long; only a failure takes all of them."""

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN, TEST = 10, 4
"""Images in the two splits of `make_shards`."""

TINY: dict[str, Any] = {
    "data": {"image_size": 32, "workers": 0},
    "model": {"base_channels": 2},
    "perceptual": {"arch": "vgg16", "weights": "random", "feature_scale": "none"},
    "loss_weights": {"content": 0.5, "style": 0.5},
    "training": {
        "pretrain_steps": 4,
        "fusion_steps": 4,
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "device": "cpu",
        "ema_decay": 0.9,
    },
    "tracking": {"log_every": 1, "image_every": 4, "checkpoint_every": 2},
    "evaluation": {"pairs": 4, "batch_size": 3, "corner_pairs": 0},
}


STATE: dict[str, Any] = {"stage": "train", "images_seen": 0, "config": {}, "data_hash": "", "skipped_steps": 0}
"""The least that a checkpoint says of itself, for tests that save one without a run."""

ENDLESS_JOB = (
    "training.global_batch_size=8",
    "training.micro_batch_size=2",
    "training.pretrain_steps=100000",
    "tracking.checkpoint_every=10",
    "tracking.image_every=100000",
    "tracking.log_every=100000",
    "data.workers=1",
)
"""For tests that stop it: several ranks, saving often."""


def picture(seed: int, size: tuple[int, int] = (40, 48), mode: str = "RGB") -> Image.Image:
    """Smooth random colours; `size` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def make_photographs(folder: Path, count: int, first_seed: int = 0) -> Path:
    """`folder/000.jpg` and on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(first_seed + number).save(folder / f"{number:03d}.jpg", quality=95)
    return folder


def make_shards(folder: Path, first_seed: int = 0) -> Path:
    """`folder/train` of 10 images and `folder/test` of 4; the photographs are in `folder/photographs`."""
    photographs = make_photographs(folder / "photographs", TRAIN + TEST, first_seed)
    write_shards(photographs, folder, split=str(TEST / (TRAIN + TEST)), samples_per_shard=4, workers=1)
    return folder


def tiny_config(run_dir: Path, shards: Path, *overrides: str) -> Config:
    """A configuration whose every stage takes seconds; `overrides` as for `--set`."""
    places = (f"run_dir={run_dir}", f"data.shards={shards}")
    return configuration.load(_tiny_file(run_dir.parent), [*places, *overrides])


def tiny_arguments(run_dir: Path, shards: Path, *overrides: str) -> list[str]:
    """The same configuration as options of a command."""
    places = (f"run_dir={run_dir}", f"data.shards={shards}")
    settings = [option for each in (*places, *overrides) for option in ("--set", each)]
    return ["--config", str(_tiny_file(run_dir.parent)), *settings]


def _tiny_file(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(TINY))
    return path


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    errors: str

    def assert_one_line(self, *parts: str, code: int = 2) -> None:
        """One line on standard error that begins with the program's name and holds `parts`; no traceback."""
        assert self.code == code, (self.code, self.errors)
        assert self.errors.startswith("latentfuse: "), self.errors
        assert self.errors.count("\n") == 1, self.errors
        for part in parts:
            assert part in self.errors, (part, self.errors)
        assert "Traceback" not in self.out


def latentfuse(*arguments: object) -> Result:
    """The command line, in this process."""
    out, errors = io.StringIO(), io.StringIO()
    code = 0
    AcceleratorState._reset_state(True)  # each command believes to be the first
    with (
        mock.patch.object(context, "CALIBRATION_IMAGES", 8),
        mock.patch.object(sys, "argv", ["latentfuse", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), errors.getvalue())


class Process(Protocol):
    """A subprocess, or a command that was forked (see forking.py); the leader of a process group of its own."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> Any: ...
    def poll(self) -> int | None: ...
    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]: ...


def start(
    *arguments: object, module: tuple[str, ...] = ("-m", "pipeline"), before: tuple[str, ...] = (), **variables: str
) -> "subprocess.Popen[str]":
    """A command as a user starts it. Importing everything takes seconds: `forking.start_command` does not need them."""
    return subprocess.Popen(
        [*before, sys.executable, *module, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def accelerate_launch(*arguments: object, port: object, machines: int = 1, **options: Any) -> "subprocess.Popen[str]":
    """The command line on two ranks, by accelerate's launcher; `options` as of `start`."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", f"--num_machines={machines}"]
    more = [f"--main_process_port={port}", "--mixed_precision=no", "--dynamo_backend=no"]
    more += [f"--{name}={options.pop(name)}" for name in ("machine_rank", "main_process_ip") if name in options]
    return start("-m", "pipeline", *arguments, module=(*launcher, *more), **options)


def finish(process: Process, seconds: float = PATIENCE) -> Result:
    """What became of it, once it has ended."""
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"still running after {seconds} s: {process.communicate()}") from None
    return Result(process.returncode, out, errors)


def wait_for(condition: Callable[[], object], process: Process | None = None, seconds: float = PATIENCE) -> None:
    """Until `condition` holds; fails if `process` ends without that."""
    deadline = time.monotonic() + seconds
    while True:
        ended = process is not None and process.poll() is not None
        if condition():
            return
        assert not ended, process and process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process ends soon, or has; its parent may not have asked how."""

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_for(is_gone)
    return True


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def free_port() -> int:
    """Below the ports that Linux hands out itself: no connection of another test takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


def listing(folder: Path) -> set[str]:
    """Every file and folder, hidden ones included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def scalars(run_dir: Path, stage: str) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: tag -> step -> value."""
    events = EventAccumulator(str(run_dir / "tensorboard" / stage)).Reload()
    return {tag: {each.step: each.value for each in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def new_runtime(config: Config) -> Runtime:
    """As if it were the first of this process."""
    AcceleratorState._reset_state(True)
    return Runtime(config.training, config.speed)


def new_setup(config: Config) -> context.Context:
    """What stages are built on, as the commands do."""
    return workflow.open_context(config, new_runtime(config))


def batch_of(made: context.Context, step: int) -> list[MicroBatch]:
    """The micro-batches of one step, from 0."""
    return next(made.train.micro_batches(made.order, step, step + 1))


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every tensor and number of nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: value}
    return {name: leaf for key, inner in items for name, leaf in leaves(inner, f"{path}/{key}").items()}


def assert_equal_bits(one: Path, other: Path) -> None:
    """Weights, buffers, averages and optimizers of two checkpoints."""
    first, second = checkpoint.load(one), checkpoint.load(other)
    for a, b in ((first.weights, second.weights), (leaves(first.optimizers), leaves(second.optimizers))):
        assert a.keys() == b.keys() and a
        for key, value in a.items():
            same = torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
            assert same, key


@dataclass(frozen=True)
class Trained:
    """A tiny run that is done."""

    root: Path
    shards: Path
    run: Path
    bundle: Path

    @property
    def photographs(self) -> tuple[Path, Path]:
        return self.shards / "photographs" / "000.jpg", self.shards / "photographs" / "001.jpg"


def make_trained(root: Path) -> Trained:
    """Shards, a run of both stages, and its bundle."""
    made = Trained(root, make_shards(root / "shards"), root / "run", root / "bundle")
    for command in ("pretrain", "train"):
        result = latentfuse(command, *tiny_arguments(made.run, made.shards))
        assert result.code == 0, result
    assert latentfuse("export", made.run, made.bundle).code == 0
    return made


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes: a full disk, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
