"""How fast this machine trains: images per second, beside what its matrix units can do."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from pipeline.cli.bench import flops
from pipeline.cli.bench.exactness import errors
from pipeline.cli.bench.literal import LiteralStage
from pipeline.cli.bench.memory import peak_bytes
from pipeline.common.errors import UserError
from pipeline.config.schema import Config
from pipeline.data.loading.loader import FaceImages, MicroBatch
from pipeline.data.loading.order import Order
from pipeline.models.extra_losses import EXTRA_TERMS
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage
from pipeline.training.pretrain import PretrainStage
from pipeline.training.runtime import Runtime
from pipeline.training.stage import Stage

WARM_UP = 2
MATRIX = {"cuda": 8192, "cpu": 1536}
"""Side of the matrices that are multiplied to find the machine's own rate."""
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Speed:
    """Of one stage. Rates are of this rank; FLOP are those that are useful, counted by `flops`."""

    stage: str
    images_per_second: float
    seconds_per_step: float
    flop_per_image: int
    flop_per_second: float
    matrix_flop_per_second: float
    share: float
    """Of the matrix rate."""
    peak_memory_bytes: int
    """Of all tensors, in a step; on a GPU, what torch has allocated there."""
    host_share: float
    """Of a step, until the host has asked for all of it: 1 where the device waits for the host."""


@dataclass(frozen=True)
class Report:
    device: str
    precision: str
    ranks: int
    image_size: int
    global_batch_size: int
    micro_batch_size: int
    steps: int
    speeds: tuple[Speed, ...]
    errors: dict[str, float] | None
    """Of a fusion step against float64, relative."""
    profile: str | None
    """The heaviest operations of a fusion step."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def measure(
    config: Config, steps: int, literal: bool = False, check: bool = False, profile: bool = False
) -> Report | None:
    """Time `steps` steps of both stages, or the next multiple of `penalty.every`, after two that do not count.

    Neither data nor weights are needed: images and the perceptual network's weights are random, which are as slow.

    Args:
        literal: time METHOD's step coded as it reads, too; ours then goes without the terms that METHOD lacks.
        check: compare a step with the same in float64.
        profile: name the ten heaviest operations of a step.

    Returns:
        None on other ranks than the main one.

    Raises:
        UserError: the device, the precision or the batch cannot be had.
    """
    perceptual = config.perceptual.model_copy(update={"weights": "random", "feature_scale": "none"})
    weights = config.loss_weights.model_copy(update=dict.fromkeys(EXTRA_TERMS, 0.0)) if literal else config.loss_weights
    config = config.model_copy(update={"perceptual": perceptual, "loss_weights": weights})
    every = config.penalty.every
    steps = -(-steps // every) * every  # as many with the penalty as there are in the long run
    runtime = Runtime(config.training, config.speed)
    no_images = cast(FaceImages, None)  # the steps are given theirs
    setup = Context(config, runtime, no_images, no_images)
    counted = flops.per_image(config)
    rate = matrix_rate(runtime.device, DTYPES[runtime.precision])
    found = errors(setup, random_batch(setup.order, config.data.image_size)) if check else None
    stages: list[tuple[Callable[[], Stage | LiteralStage], int]] = [
        (lambda: PretrainStage(setup), counted[flops.PRETRAINING]),
        (lambda: FusionStage(setup, config.run_dir), flops.useful(config)),
    ]
    if literal:
        stages.append((lambda: LiteralStage(setup), flops.useful(config)))
    speeds = tuple(_speed(make, setup, steps, flop, rate) for make, flop in stages)
    heaviest = _profile(setup) if profile else None
    if not runtime.ranks.is_main:
        return None
    on_cpu = runtime.device.type == "cpu"
    return Report(
        device=f"cpu, {torch.get_num_threads()} threads" if on_cpu else torch.cuda.get_device_name(),
        precision=runtime.precision,
        ranks=runtime.ranks.world_size,
        image_size=config.data.image_size,
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        steps=steps,
        speeds=speeds,
        errors=found,
        profile=heaviest,
    )


def as_text(report: Report) -> str:
    """A table for people."""
    batch = f"batch {report.global_batch_size}, micro-batch {report.micro_batch_size}"
    lines = [f"{report.device}; {report.precision}; {report.ranks} ranks; {report.image_size} px; {batch}"]
    lines.append(
        f"{'':<10}{'images/s':>10}{'ms/step':>10}{'GFLOP/image':>13}{'TFLOP/s':>9}{'share':>7}{'GiB':>7}{'host':>7}"
    )
    lines += [
        f"{speed.stage:<10}{speed.images_per_second:>10.4g}{1000 * speed.seconds_per_step:>10.4g}"
        f"{speed.flop_per_image / 1e9:>13.4g}{speed.flop_per_second / 1e12:>9.3g}{speed.share:>7.0%}"
        f"{speed.peak_memory_bytes / 2**30:>7.3g}{speed.host_share:>7.0%}"
        for speed in report.speeds
    ]
    limit = report.speeds[0].matrix_flop_per_second / 1e12
    lines.append(f"share: of {limit:.3g} TFLOP/s, dense matrix products measured here at this precision")
    by_name = {speed.stage: speed for speed in report.speeds}
    if "literal" in by_name:
        ratio = by_name["literal"].seconds_per_step / by_name["train"].seconds_per_step
        lines.append(f"train is {ratio:.2f} times as fast as METHOD coded literally, at the same precision and losses")
    if report.errors:
        lines.append("relative error against float64: " + ", ".join(f"{k} {v:.2g}" for k, v in report.errors.items()))
    return "\n".join([*lines, *([report.profile] if report.profile else [])])


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP per second of dense matrix products in `dtype`, the best of three tries."""
    side = MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(3):
        repeats, elapsed = 0, 0.0
        began = _now(device)
        while elapsed < seconds / 3:
            for _ in range(4 if device.type == "cuda" else 1):
                a @ b
                repeats += 1
            elapsed = _now(device) - began
        best = max(best, 2 * side**3 * repeats / elapsed)
    return best


def _speed(make: Callable[[], Stage | LiteralStage], setup: Context, steps: int, flop: int, rate: float) -> Speed:
    device = setup.runtime.device
    setup.runtime.free_memory()
    torch.manual_seed(setup.config.seed)
    stage = make()
    batch = random_batch(setup.order, setup.config.data.image_size)
    for number in range(WARM_UP):
        stage.step(number, batch)
    setup.runtime.accelerator.wait_for_everyone()
    if device.type == "cuda":  # only now: cuDNN tries its algorithms in the first step, the largest of them too
        torch.cuda.reset_peak_memory_stats()
    began = _now(device)
    for number in range(WARM_UP, WARM_UP + steps):
        stage.step(number, batch)
    asked = time.perf_counter() - began
    seconds = (_now(device) - began) / steps
    setup.runtime.optimizing.check()
    if setup.runtime.optimizing.failure:
        raise UserError(setup.runtime.optimizing.failure)
    images = sum(len(micro.images) for micro in batch) / seconds
    return Speed(
        stage.name,
        images,
        seconds,
        flop,
        images * flop,
        rate,
        images * flop / rate,
        _peak_memory(stage, batch, device),
        asked / steps / seconds,
    )


def _profile(setup: Context) -> str:
    """The ten heaviest operations of a fusion step; on a GPU, its kernels."""
    stage, device = FusionStage(setup, setup.config.run_dir), setup.runtime.device
    batch = random_batch(setup.order, setup.config.data.image_size)
    activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    for number in range(WARM_UP):
        stage.step(number, batch)
    _now(device)
    with profiler(activities=activities, acc_events=True) as seen:
        stage.step(WARM_UP, batch)
        _now(device)
    events = seen.key_averages()

    def took(event: Any) -> float:
        return float(event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)

    total = sum(map(took, events))
    lines = [f"{'ms':>9}{'share':>7}{'calls':>7}  heaviest operations of a fusion step"]
    lines += [
        f"{took(event) / 1e3:>9.3g}{took(event) / total:>7.1%}{event.count:>7}  {event.key[:90]}"
        for event in sorted(events, key=took, reverse=True)[:10]
    ]
    return "\n".join(lines)


def random_batch(order: Order, size: int) -> list[MicroBatch]:
    random, micro_batches = torch.Generator().manual_seed(0), []
    shape = (order.micro_batch_size, 3, size, size)
    for place in order.slices():
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        micro_batches.append(MicroBatch(images.pin_memory() if torch.cuda.is_available() else images, place))
    return micro_batches


def _peak_memory(stage: Stage | LiteralStage, batch: list[MicroBatch], device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    fusion = stage.fusion if isinstance(stage, LiteralStage) else stage
    networks = [*fusion.modules.values(), *([fusion.perceptual] if isinstance(fusion, FusionStage) else [])]
    memories = [memory for optimizer in stage.optimizers.values() for memory in optimizer.state.values()]
    held = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    held += [tensor for memory in memories for tensor in memory.values()]
    return peak_bytes(held, lambda: stage.step(0, batch))


def _now(device: torch.device) -> float:
    """Once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
