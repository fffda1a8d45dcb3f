"""What stands in the way of a run on this machine, and the fix of each."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipeline.common.devices import check_device, slow_precision, unsupported_gpu
from pipeline.common.errors import UserError
from pipeline.config.schema import Config
from pipeline.data.shards.format import load_manifest
from pipeline.data.shards.reader import ShardReader
from pipeline.models.perceptual import PerceptualNetwork

PACKAGES = ("torch", "torchvision", "accelerate", "webdataset", "safetensors", "tensorboard")
MIN_FREE_GIB = 5.0
"""Checkpoints, events and a bundle of a full-width run with room to spare."""


@dataclass(frozen=True)
class Check:
    what: str
    state: str
    fix: str = ""
    """Empty where there is nothing to mend."""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(config: Config) -> list[Check]:
    """Every check, in the order in which a reader would mend them."""
    return [
        _versions(),
        *_devices(config),
        _disk(config.run_dir),
        *_splits(config),
        _refusal("perceptual weights", config.perceptual.weights, lambda: _perceptual(config)),
    ]


def as_text(checks: list[Check]) -> str:
    """One line per check, and its fix under it."""
    width = max(len(check.what) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{'FIX ' if check.fix else 'ok  '} {check.what:<{width}}  {check.state}")
        if check.fix:
            lines.append(f"{'':<{width + 7}}-> {check.fix}")
    return "\n".join(lines)


def _versions() -> Check:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return Check("versions", ", ".join([f"python {platform.python_version()}", *versions]))


def _devices(config: Config) -> list[Check]:
    if not torch.cuda.is_available():
        fix = ""
        if config.training.device == "cuda":
            built = torch.version.cuda
            fix = f"torch is built for CUDA {built}: check `nvidia-smi`" if built else "install torch with CUDA"
        return [Check("device", f"no GPU; {os.cpu_count()} processors", fix), _precision(config, "cpu")]
    checks = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        bf16 = properties.major >= 8
        architecture, memory = f"sm_{properties.major}{properties.minor}", properties.total_memory / 2**30
        precisions = "fp16, bf16 and fp32" if bf16 else "fp16 and fp32, no bf16"
        checks.append(Check(f"GPU {number}", f"{properties.name}, {architecture}, {memory:.0f} GiB: {precisions}"))
    problem = unsupported_gpu()
    if problem:
        checks.append(Check("torch for this GPU", "not built for it", problem))
    return [*checks, _precision(config, config.training.device)]


def _precision(config: Config, device: str) -> Check:
    precision = config.training.mixed_precision or "no"
    if slow := slow_precision(device, precision):
        return Check("precision", precision, slow)
    return _refusal("precision", precision, lambda: check_device(device, precision))


def _disk(folder: Path) -> Check:
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    if not existing.is_dir():
        return Check("disk", f"{existing} is a file", "set run_dir to a folder")
    free = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        return Check("disk", f"{existing} cannot be written", "set run_dir to a folder that you may write to")
    fix = f"free some, or set run_dir elsewhere: a run wants {MIN_FREE_GIB:g} GiB" if free < MIN_FREE_GIB else ""
    return Check("disk", f"{free:.0f} GiB free at {existing}", fix)


def _splits(config: Config) -> list[Check]:
    """Training from a stream reads the test split alone; what is not there yet, `run` makes from `data.source`."""
    splits = [config.shards_dir / split for split in ("train", "test")[config.data.stream is not None :]]
    if config.data.source is not None and not any(split.exists() for split in splits):
        return [Check("shards", f"to be made by `run` from {config.data.source}")]
    return [_shards(split) for split in splits]


def _shards(folder: Path) -> Check:
    try:
        manifest = load_manifest(folder)
    except UserError as error:
        return Check(f"shards, {folder.name}", "not ready", str(error))
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            return Check(f"shards, {folder.name}", f"{shard.file} missing or cut short", f"latentfuse verify {folder}")
    try:
        ShardReader(folder)
    except UserError as error:
        return Check(f"shards, {folder.name}", "its index cannot be read", str(error))
    size = sum(shard.bytes for shard in manifest.shards) / 2**30
    return Check(f"shards, {folder.name}", f"{manifest.samples} images, {len(manifest.shards)} shards, {size:.2f} GiB")


def _perceptual(config: Config) -> None:
    if config.perceptual.weights != "random":
        PerceptualNetwork(config.perceptual)


def _refusal(what: str, state: str, check: Callable[[], None]) -> Check:
    try:
        check()
    except UserError as error:
        return Check(what, state, str(error))
    return Check(what, state)
