"""Checkpoints: whole and checked, or not there; and the run folder they are in.

Layout of one: `step-00001000/` with `model.safetensors` (weights, averages, buffers), `optimizers.pt` (loadable
with `weights_only=True`), `state.json` (step, configuration, data) and `manifest.json` (SHA-256 of the others).
Written to a temporary folder, flushed, renamed; only then the oldest are dropped.
"""

import fcntl
import json
import os
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.config.load import validate_stored
from pipeline.config.schema import Config
from pipeline.inference.weights import listed, not_finite
from pipeline.training.heartbeat import STOP

WEIGHTS, OPTIMIZERS, STATE, MANIFEST = "model.safetensors", "optimizers.pt", "state.json", "manifest.json"
KINDS = {"step": int, "stage": str, "images_seen": int, "config": dict, "data_hash": str, "skipped_steps": int}
"""What every state holds."""
STAGES = ("train", "pretrain")
"""The last one first."""
LOCK = ".lock"
SINGLE_FILES = ("config.yaml", "status.json", "strip.png")
"""What a job writes in its run folder without looking at what is there."""
STEPS, REPORTS = r"step-[0-9]{8,}", r"rank[0-9]{4,}\.json"
WRITTEN = (
    ("", r"config\.yaml|status\.json|strip\.png|bundle"),
    ("evaluation", "evaluation"),
    ("pretrain/checkpoints", STEPS),
    ("train/checkpoints", STEPS),
    ("pretrain/not-finite-step-*", REPORTS),
    ("train/not-finite-step-*", REPORTS),
)
"""Folders of a run, and the files and folders that a killed job may have left half-written there."""


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
        step: int = self.state["step"]
        return step

    @property
    def config(self) -> Config:
        """What it was trained with, with today's defaults where a key is newer.

        Raises:
            UserError: if that is none.
        """
        return validate_stored(self.state["config"], str(self.path / STATE))

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
    path = folder / _name(step)
    if bad := not_finite(weights):
        raise UserError(f"{path}: not saved: not finite: {listed(bad)}; earlier ones are intact")
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
    for old in [each for each in steps(folder) if int(each.name[5:]) <= step][:-keep]:
        shutil.rmtree(old, ignore_errors=True)  # NFS keeps a file that is open elsewhere; the next save tries again
    return path


def folder_of(run_dir: Path, stage: str) -> Path:
    """Where the checkpoints of a stage are."""
    return run_dir / stage / "checkpoints"


def steps(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, verified or not; folders with other names are the user's."""
    return sorted(
        (path for path in folder.glob("step-*") if re.fullmatch(STEPS, path.name)),
        key=lambda path: int(path.name[5:]),
    )


def _name(step: int) -> str:
    return f"step-{step:08d}"


def load(path: Path) -> Checkpoint:
    """Read one checkpoint and check every byte of it.

    Raises:
        UserError: naming the file that is missing, damaged or unreadable, or of another step than the folder's name.
    """
    try:
        sums = files.read_json(path / MANIFEST)
        for name in (WEIGHTS, OPTIMIZERS, STATE):
            if files.sha256(path / name) != sums[name]:
                raise UserError(f"{path / name}: damaged: its SHA-256 is not the manifest's")
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path / MANIFEST}: damaged: not a checkpoint's manifest") from None
    state = _load_state(path / STATE)
    if re.fullmatch("step-[0-9]+", path.name) and path.name != _name(state["step"]):
        raise UserError(f"{path}: holds step {state['step']}: the folder was renamed; name it {_name(state['step'])}")
    weights = _load_weights(path / WEIGHTS)
    return Checkpoint(path, weights, _load_optimizers(path / OPTIMIZERS), state, sums[WEIGHTS])


def _load_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = files.read_json(path)
        whole = all(type(state[key]) is kind for key, kind in KINDS.items())
        if not whole or not 0 <= state["step"] < 10**12 or state["skipped_steps"] < 0:
            raise ValueError
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged: not the state of a checkpoint") from None
    return state


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = load_file(path)
        bad = not_finite(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    if bad:
        raise UserError(f"{path}: damaged: not finite: {listed(bad)}")
    return weights


def _load_optimizers(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as members:
            if sum(member.file_size for member in members.infolist()) > path.stat().st_size:
                raise ValueError("compressed, as torch never writes it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on what it then refuses
            optimizers = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a file that torch did not write can make it raise is anything
        if "DefaultCPUAllocator" in str(error):  # no fault of the file
            raise
        raise UserError(f"{path}: damaged: torch cannot load it ({type(error).__name__})") from None
    if not isinstance(optimizers, dict) or not all(isinstance(each, dict) for each in optimizers.values()):
        raise UserError(f"{path}: damaged: not the state of optimizers")
    return optimizers


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
    for folder in (path, path / "checkpoints", *(folder_of(path, stage) for stage in STAGES)):
        found, passed_over = newest(folder)
        for reason in passed_over:
            print(f"passed over {reason}", flush=True)
        if found:
            return found
    raise UserError(f"{path}: no checkpoint here; `latentfuse pretrain` and then `train` make them")


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for this job, and remove what an earlier one left in it: half-written files, the file STOP.

    The lock ends with the process, however that ends.

    Raises:
        UserError: if another job holds it, or it cannot be written, or holds files that no job wrote.
    """
    try:
        new = not (run_dir / LOCK).exists()
        if new:
            _refuse_files_of_others(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
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
        if not new:
            _remove_stop(run_dir / STOP)
        yield
    finally:
        os.close(descriptor)


def _refuse_files_of_others(run_dir: Path) -> None:
    """Every run has a lock; one that was copied without it has checkpoints."""
    if any(folder_of(run_dir, stage).exists() for stage in STAGES):
        return
    for name in SINGLE_FILES:
        if (run_dir / name).exists():
            raise UserError(f"run_dir: {run_dir} holds {name}, and is no run's folder; set another run_dir, or move it")


def _remove_leftovers(run_dir: Path) -> None:
    for where, names in WRITTEN:
        for folder in run_dir.glob(where) if where else (run_dir,):
            if folder.resolve() == folder:  # no link, nor behind one
                files.remove_leftovers(folder, names)


def _remove_stop(path: Path) -> None:
    if path.is_file():
        with suppress(OSError):  # then it stops no job, as it was there before
            path.unlink()
            print(f"{path}: was there before this job began; removed", flush=True)
