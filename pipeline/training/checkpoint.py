"""Checkpoints: whole and checked, or not there; and the run folder they are in.

Layout of one: `step-00001000/` with `model.safetensors` (weights, averages, buffers), `optimizers.pt` (loadable
with `weights_only=True`), `state.json` (step, configuration, data) and `manifest.json` (SHA-256 of the others).
Written to a temporary folder, flushed, renamed; only then the oldest are dropped.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.common import files
from pipeline.common.errors import UserError

WEIGHTS, OPTIMIZERS, STATE, MANIFEST = "model.safetensors", "optimizers.pt", "state.json", "manifest.json"
LEFTOVERS = (
    *(".*-????????.tmp.*", ".bundle.tmp", ".evaluation.tmp"),
    *("*/checkpoints/.step-????????.*", "*/not-finite-step-*/.*-????????.tmp.json"),
)
"""In a run folder, what a killed job may leave half-written."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    weights: dict[str, Tensor]
    """Flat, on the CPU; `autoencoder.encoder.body.0.0.weight` and so on."""
    optimizers: dict[str, Any]
    state: dict[str, Any]
    digest: str
    """SHA-256 of the weights' file."""

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def module(self, name: str) -> dict[str, Tensor]:
        """The state dict of one module."""
        prefix = name + "."
        return {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}


def save(
    folder: Path, step: int, weights: dict[str, Tensor], optimizers: dict[str, Any], state: dict[str, Any], keep: int
) -> Path:
    """Write `folder/step-N` and, of it and earlier ones, drop all but the newest `keep`.

    Raises:
        UserError: if a weight is not finite, or writing fails; what was there before is untouched.
    """
    path = folder / f"step-{step:08d}"
    bad = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if bad:
        raise UserError(f"{path}: not saved: {bad[0]} and {len(bad) - 1} more are not finite; earlier ones are intact")
    try:
        with files.replacing_folder(path) as temporary:
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, temporary / WEIGHTS)
            torch.save(optimizers, temporary / OPTIMIZERS)
            (temporary / STATE).write_text(json.dumps({**state, "step": step}, indent=2))
            shutil.copymode(temporary / STATE, temporary / WEIGHTS)  # safetensors lets nobody else read its files
            sums = {name: files.sha256(temporary / name) for name in (WEIGHTS, OPTIMIZERS, STATE)}
            (temporary / MANIFEST).write_text(json.dumps(sums, indent=2))
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch does not tell the system's reason.
        reason = f"{error} (is the disk full?)" if isinstance(error, RuntimeError) else str(error)
        raise UserError(f"{path}: the checkpoint could not be written: {reason}; earlier ones are intact") from None
    # Those of later steps did not verify, or this step would not have been trained again: they do not count.
    for old in [each for each in steps(folder) if each <= path][:-keep]:
        shutil.rmtree(old, ignore_errors=True)  # NFS keeps a file that is open elsewhere; the next save tries again
    return path


def folder_of(run_dir: Path, stage: str) -> Path:
    """Where the checkpoints of a stage are."""
    return run_dir / stage / "checkpoints"


def steps(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, verified or not; folders with other names are the user's."""
    return sorted(path for path in folder.glob("step-*") if path.name[5:].isdigit())


def load(path: Path) -> Checkpoint:
    """Read one checkpoint and check every byte of it.

    Raises:
        UserError: naming the file that is missing, damaged or unreadable.
    """
    try:
        sums = json.loads((path / MANIFEST).read_text())
        for name in (WEIGHTS, OPTIMIZERS, STATE):
            if files.sha256(path / name) != sums[name]:
                raise UserError(f"{path / name}: damaged: its SHA-256 is not the manifest's")
        return Checkpoint(
            path,
            load_file(path / WEIGHTS),
            torch.load(path / OPTIMIZERS, map_location="cpu", weights_only=True),
            json.loads((path / STATE).read_text()),
            sums[WEIGHTS],
        )
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path / MANIFEST}: damaged: not a checkpoint's manifest") from None


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and why each newer one was passed over.

    Raises:
        UserError: if none verifies: starting over in silence would lose them.
    """
    passed_over: list[str] = []
    for path in reversed(steps(folder)):
        try:
            return load(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    if passed_over:
        raise UserError(f"{folder}: no checkpoint verifies ({'; '.join(passed_over)}); remove the folder to start over")
    return None, []


def find(path: Path) -> Checkpoint:
    """A checkpoint by its own folder, by its stage's folder, or by its run's (the last stage reached).

    Raises:
        UserError: if there is none.
    """
    if (path / MANIFEST).is_file():
        return load(path)
    for folder in (path, path / "checkpoints", *(path / stage / "checkpoints" for stage in ("train", "pretrain"))):
        found, passed_over = newest(folder)
        for reason in passed_over:
            print(f"passed over {reason}", flush=True)
        if found:
            return found
    raise UserError(f"{path}: no checkpoint here; `latentfuse pretrain` and then `train` make them")


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for this job, and remove what a killed one left half-written in it.

    The lock ends with the process, however that ends.

    Raises:
        UserError: if another job holds it, or it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written: {error.strerror}") from None
    try:
        # Not `flock`: a loader's worker that outlives a killed job by seconds would hold that as long.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise UserError(f"{run_dir}: another job is running here; wait for it, or set another run_dir") from None
    except OSError as error:  # as on Lustre mounted without locks
        warning = f"{run_dir}: cannot be locked ({error.strerror}); see to it that no other job runs here"
        print(warning, file=sys.stderr, flush=True)
    try:
        _remove_leftovers(run_dir.resolve())
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(run_dir: Path) -> None:
    for left in (path for pattern in LEFTOVERS for path in run_dir.glob(pattern)):
        if left.resolve() != left:  # a link, or behind one: not ours
            continue
        shutil.rmtree(left) if left.is_dir() else left.unlink()
