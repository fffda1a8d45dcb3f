"""What a run says of itself before its first step."""

import os
import platform
from pathlib import Path

import torch
from torch import nn

from pipeline.data.loading.loader import FaceImages
from pipeline.training.context import Context
from pipeline.training.stage import Stage
from pipeline.training.trackers import BOARD

CPU_INFO = Path("/proc/cpuinfo")


def opening(stage: Stage, context: Context, done: int) -> str:
    """A table: where and on how much this stage trains, from which step, and where to watch it."""
    config, runtime, training = context.config, context.runtime, context.config.training
    world, micro = runtime.ranks.world_size, training.micro_batch_size
    accumulation = training.global_batch_size // (world * micro)
    nodes = world // int(os.environ.get("LOCAL_WORLD_SIZE", world))
    images = f"{len(context.train):,}" if isinstance(context.train, FaceImages) else "streamed"
    autoencoder, critic = stage.modules["autoencoder"], stage.modules.get("discriminator")
    modules = dict(autoencoder.named_children()) | ({"discriminator": critic} if critic else {})
    more = advice(runtime.device, world, runtime.launch.wanted_more)
    rows = {
        "device": f"{device_name(runtime.device)}, {runtime.precision.replace('no', 'float32')}",
        "ranks": f"{world} on {nodes} node{'s' if nodes > 1 else ''}{more}",
        "batch": f"{training.global_batch_size} = {world} (ranks) x {accumulation} (accumulation) x {micro}",
        "parameters": ", ".join(f"{name} {parameters(each):,}" for name, each in modules.items()),
        "images": f"{images} for training, {len(context.held_out):,} held out; {config.data.image_size} x "
        f"{config.data.image_size}",
        "steps": f"{stage.total_steps:,}, {f'resumed at {done:,}' if done else 'from the beginning'}",
        "folder": str(config.run_dir / stage.name),
    }
    if BOARD in config.tracking.trackers:
        rows["TensorBoard"] = f"tensorboard --logdir {config.run_dir / BOARD}"
    if others := [name for name in config.tracking.trackers if name != BOARD]:
        rows["trackers"] = ", ".join(others)
    width = max(map(len, rows))
    return "\n".join([f"{stage.name}:", *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def device_name(device: torch.device) -> str:
    """As `cuda:0, Tesla V100-SXM2-16GB`."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    names = []
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{device}, {names[0] if names else platform.machine()}, threads: {torch.get_num_threads()}"


def advice(device: torch.device, world: int, wanted_more: bool) -> str:
    """What to do where one rank runs, but more were asked for or there are GPUs that it does not use; else nothing."""
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if world > 1 or (count < 2 and not wanted_more):
        return ""
    many = str(count) if count > 1 else "N"
    why = "accelerate launch was asked for more, but started one" if wanted_more else f"this machine has {count} GPUs"
    on_cpus = ", which also starts ranks on CPUs" if device.type == "cpu" else ""
    return f"; {why}: accelerate launch --multi_gpu --num_processes {many} -m pipeline ...{on_cpus}"
