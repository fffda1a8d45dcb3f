"""What a configured run asks of this machine: time and memory, told from the pace of a few steps."""

import re
from contextlib import suppress
from pathlib import Path

import torch

from pipeline.cli.bench.pace import Pace, paces
from pipeline.cli.checks import Check
from pipeline.common.numbers import divisors
from pipeline.config.schema import Config

MINUTE, HOUR, DAY, MONTH, YEAR = 60, 3600, 86_400, 30.4 * 86_400, 365 * 86_400
UNITS = {"years": YEAR, "months": MONTH, "days": DAY, "hours": HOUR, "minutes": MINUTE, "seconds": 1}
SMALLER = "set a smaller data.image_size or model.base_channels"
SYSTEM = Path("/")
"""Where /proc and /sys are."""


def plan(config: Config) -> list[Check]:
    """How long each stage takes here, and whether its steps fit into the memory. Takes seconds itself."""
    on_gpu = torch.cuda.is_available() and config.training.device != "cpu"
    free = torch.cuda.mem_get_info()[0] if on_gpu else free_memory()
    where = torch.cuda.get_device_name() if on_gpu else "this machine"
    try:
        found = paces(config)
    except torch.OutOfMemoryError:
        smaller = divisors(config.training.micro_batch_size)[1:-1]
        fix = f"set training.micro_batch_size to {' or '.join(map(str, smaller[::-1]))}" if smaller else SMALLER
        return [Check("memory", f"a step needs more than {where} has free", fix)]
    return [*times(found, _ranks(config) if on_gpu else 1), *_memory(config, found, free, where)]


def times(found: list[Pace], ranks: int = 1) -> list[Check]:
    """A line for each stage, and one for both. `ranks`: GPUs here that can share the batch."""
    checks, whole = [], 0.0
    for each in found:
        seconds = each.steps * each.seconds_per_step
        whole += seconds / ranks
        here = (
            f"{duration(seconds)} on one GPU, {duration(seconds / ranks)} on {ranks}"
            if ranks > 1
            else duration(seconds)
        )
        checks.append(Check(each.stage, f"{each.steps:,} steps of {duration(each.seconds_per_step)}: {here}"))
    note = (
        f"a plan of {duration(whole)}: {'more' if ranks > 1 else 'train on'} GPUs (launch/README.md) make it shorter, "
    )
    note += "and so do a smaller training.fusion_steps, data.image_size or model.base_channels"
    return [*checks, Check("both stages", f"{duration(whole)} on this machine", note=note if whole >= MONTH else "")]


def duration(seconds: float) -> str:
    """As `4.2 months`, in the largest unit of which it has more than one and a half."""
    if seconds < 1:
        return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
    name, unit = next(((name, unit) for name, unit in UNITS.items() if seconds >= 1.5 * unit), ("seconds", 1))
    value = seconds / unit
    return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"


def _ranks(config: Config) -> int:
    """The most GPUs here that can share the global batch."""
    micro_batches = config.training.global_batch_size // config.training.micro_batch_size
    return max(count for count in divisors(micro_batches) if count <= max(1, torch.cuda.device_count()))


def _memory(config: Config, found: list[Pace], free: int | None, where: str) -> list[Check]:
    micro = config.training.micro_batch_size
    heaviest = max(found, key=lambda each: each.peak_bytes.at(micro))
    needed = heaviest.peak_bytes.at(micro)
    if free is None:
        return [Check("memory", f"a step needs {_gib(needed)}")]
    fitting = [
        m for m in divisors(config.training.global_batch_size)[1:] if heaviest.peak_bytes.at(m) < free and m < micro
    ]
    fix = f"set training.micro_batch_size to {fitting[-1]}, or less" if fitting else SMALLER
    state = f"a step of {heaviest.stage} needs {_gib(needed)}, {where} has {_gib(free)} free"
    return [Check("memory", state, fix if needed > free else "")]


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine's memory and of its control groups', as SLURM and
    containers set them. None where this is no Linux.
    """
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", (SYSTEM / "proc/meminfo").read_text())
        groups = (SYSTEM / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    free = int(available[1]) * 1024 if available else None
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = SYSTEM / "sys/fs/cgroup" / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        folder = root / path.strip("/")
        for each in (folder, *folder.parents):
            if not each.is_relative_to(root):
                break
            with suppress(OSError, ValueError):  # no limit there
                limit, used = (int((each / name).read_text()) for name in names)
                inactive = re.search(
                    r"^(?:total_)?inactive_file (\d+)", (each / "memory.stat").read_text(), re.MULTILINE
                )
                left = limit - used + (int(inactive[1]) if inactive else 0)  # cached files make room
                free = left if free is None else min(free, left)
    return free
