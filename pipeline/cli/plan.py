"""What a configured run asks of this machine: time and memory, told from the pace of a few steps."""

import torch

from pipeline.cli.bench.pace import Pace, paces
from pipeline.cli.checks import Check
from pipeline.common.memory import free_memory
from pipeline.common.numbers import divisors
from pipeline.config.schema import Config

MINUTE, HOUR, DAY, MONTH, YEAR = 60, 3600, 86_400, 30.4 * 86_400, 365 * 86_400
UNITS = {"years": YEAR, "months": MONTH, "days": DAY, "hours": HOUR, "minutes": MINUTE, "seconds": 1}
SMALLER = "set a smaller data.image_size or model.base_channels"


def plan(config: Config) -> list[Check]:
    """How long each stage takes here, and whether its steps fit into the memory. Takes seconds itself."""
    on_gpu = torch.cuda.is_available() and config.training.device != "cpu"
    free = torch.cuda.mem_get_info()[0] if on_gpu else free_memory()
    where = torch.cuda.get_device_name() if on_gpu else "this machine"
    micro = config.training.micro_batch_size
    try:
        found = paces(config)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        smaller = divisors(micro)[1:-1]
        fix = f"set training.micro_batch_size to {smaller[-1]}, or less" if smaller and on_gpu else SMALLER
        return [Check("memory", f"a step needs more than {where} has free", fix)]
    return [*times(found, _ranks(config) if on_gpu else 1), memory(config, found, free, where)]


def times(found: list[Pace], ranks: int = 1) -> list[Check]:
    """A line for each stage, and one for both. `ranks`: GPUs here that can share the batch."""
    checks = []
    for each in found:
        steps = f"{each.steps:,} steps of {duration(each.seconds_per_step)}"
        checks.append(Check(each.stage, f"{steps}: {_shared(each.steps * each.seconds_per_step, ranks)}"))
    seconds = sum(each.steps * each.seconds_per_step for each in found)
    note = ""
    if seconds / ranks >= MONTH:
        faster = f"more than {ranks} GPUs" if ranks > 1 else "GPUs"
        note = (
            f"a plan of {duration(seconds / ranks)}: train on {faster} (launch/README.md), or make "
            "training.fusion_steps, data.image_size or model.base_channels smaller"
        )
    return [*checks, Check("both stages", f"{_shared(seconds, ranks)}, as measured here", note=note)]


def _shared(seconds: float, ranks: int) -> str:
    if ranks == 1:
        return duration(seconds)
    return f"{duration(seconds)} on one GPU, at best {duration(seconds / ranks)} on {ranks}"


def duration(seconds: float) -> str:
    """As `4.2 months`, in the largest unit of which it has one and a half."""
    if seconds < 1:
        return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
    name, unit = next(((name, unit) for name, unit in UNITS.items() if seconds >= 1.5 * unit), ("seconds", 1))
    value = seconds / unit
    return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"


def _ranks(config: Config) -> int:
    """The most GPUs here that can share the global batch."""
    micro_batches = config.training.global_batch_size // config.training.micro_batch_size
    return max(count for count in divisors(micro_batches) if count <= max(1, torch.cuda.device_count()))


def memory(config: Config, found: list[Pace], free: int | None, where: str) -> Check:
    """The larger stage's need beside what is free. `free`: bytes, None where that is not known."""
    micro = config.training.micro_batch_size
    heaviest = max(found, key=lambda each: each.peak_bytes.at(micro))
    needed = heaviest.peak_bytes.at(micro)
    state = f"a step of {heaviest.stage} needs about {_gib(needed)}"
    if free is None:
        return Check("memory", state)
    smaller = [size for size in divisors(config.training.global_batch_size)[1:] if size < micro]
    fitting = [size for size in smaller if heaviest.peak_bytes.at(size) < free]
    fix = f"set training.micro_batch_size to {fitting[-1]}, or less" if fitting else SMALLER
    return Check("memory", f"{state}, {where} has {_gib(free)} free", fix if needed > free else "")


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
