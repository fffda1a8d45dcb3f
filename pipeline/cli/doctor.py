"""What stands in the way of a run on this machine, and the fix of each."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import torch

from pipeline.cli.checks import Check, refusal
from pipeline.cli.plan import plan
from pipeline.cli.run_folder import run_folder
from pipeline.common.devices import check_device, slow_precision, unsupported_gpu
from pipeline.common.errors import UserError
from pipeline.config.schema import Config
from pipeline.data.loading.loader import shared_memory
from pipeline.data.loading.order import Order
from pipeline.data.loading.workers import SHARED_MEMORY, check_shared_memory
from pipeline.data.shards.format import load_manifest
from pipeline.data.shards.reader import ShardReader
from pipeline.models.perceptual import PerceptualNetwork
from pipeline.training.launcher import read_launcher

PACKAGES = ("torch", "torchvision", "accelerate", "webdataset", "safetensors", "tensorboard")


def examine(config: Config) -> list[Check]:
    """Every check, in the order in which a reader would mend them."""
    computing = [*_devices(config), *_launched(config)]
    checks = [
        _versions(),
        *computing,
        *_loading(config),
        *run_folder(config.run_dir),
        *_splits(config),
        refusal("perceptual weights", config.perceptual.weights, lambda: _perceptual(config)),
    ]
    if any(check.fix for check in computing):
        return checks  # it cannot compute
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return [*checks, Check("time", "not measured under a launcher; run `latentfuse doctor` alone")]
    return [*checks, *plan(config)]


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
    return refusal("precision", precision, lambda: check_device(device, precision))


def _launched(config: Config) -> list[Check]:
    """What a launcher has told this process, and whether so many ranks can share the batch."""
    training = config.training
    try:
        launch = read_launcher()
    except UserError as error:
        return [Check("launcher", "its environment is wrong", str(error))]
    state = f"rank {launch.rank} of {launch.world_size}, which meet at {launch.address}" if launch.address else "none"
    size, micro = training.global_batch_size, training.micro_batch_size

    def order() -> Order:
        return Order(1, config.seed, size, micro, launch.rank, launch.world_size)

    batch = f"{size} images a step, {micro} at a time; {launch.world_size} ranks"
    return [Check("launcher", state), refusal("batch", batch.replace("1 ranks", "1 rank"), order)]


def _loading(config: Config) -> list[Check]:
    """Whether the loader's workers have room for the images that they have ready."""
    if config.data.stream is not None or not SHARED_MEMORY.exists():
        return []
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed = ranks * shared_memory(config.data, config.training.micro_batch_size)
    free = shutil.disk_usage(SHARED_MEMORY).free
    state = f"{-(-needed // 2**20):,} MiB needed by data.workers={config.data.workers}, {free // 2**20:,} MiB free"
    return [refusal("shared memory", state, lambda: check_shared_memory(config.data.workers, needed))]


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
