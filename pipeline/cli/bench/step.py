"""How fast this machine trains: images per second, beside the rate of its matrix products."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from pipeline.cli.bench.counting import Counter
from pipeline.common.errors import UserError
from pipeline.config.schema import Config
from pipeline.data.loading.loader import FaceImages, MicroBatch
from pipeline.data.loading.order import Order
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage
from pipeline.training.pretrain import PretrainStage
from pipeline.training.runtime import Runtime

WARM_UP = 2
SIDES = {"cuda": 8192, "cpu": 1536}
"""Of the matrices that are multiplied to find the machine's rate."""
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Steps(Protocol):
    """What is timed: a stage of training, or something that steps like one."""

    name: str

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        """One optimizer step; `step` is from 0."""


@dataclass(frozen=True)
class Speed:
    """Of one stage, on this rank."""

    stage: str
    images_per_second: float
    seconds_per_step: float
    flop_per_image: int
    """Without what accumulation computes a second time."""
    flop_per_second: float
    matrix_flop_per_second: float
    """What dense matrix products reach on this device at this precision."""
    share: float
    """`flop_per_second` over `matrix_flop_per_second`."""
    peak_memory_bytes: int
    """Of all tensors in a step; on a GPU, what torch has allocated there."""
    host_share: float
    """The part of a step after which the host has queued all of its work: 1 if the device waits for the host."""


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
    profile: str | None
    """The heaviest operations of a fusion step."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def without_data(config: Config) -> Context:
    """What stages need, without data or weights: the perceptual network's are random, and there are no images.

    Raises:
        UserError: the device or the precision cannot be had.
    """
    perceptual = config.perceptual.model_copy(update={"weights": "random", "feature_scale": "none"})
    config = config.model_copy(update={"perceptual": perceptual})
    no_images = cast(FaceImages, None)  # the steps are given theirs
    return Context(config, Runtime(config.training, config.speed), no_images, no_images)


def measure(context: Context, steps: int, profile: bool = False) -> Report | None:
    """Time `steps` steps of both stages, or the next multiple of `penalty.every`, after two that do not count.

    Args:
        context: from `without_data`.
        profile: name the ten heaviest operations of a fusion step.

    Returns:
        None on other ranks than the main one.

    Raises:
        UserError: the batch cannot be had, or the gradients are not finite.
    """
    config, runtime = context.config, context.runtime
    every = config.penalty.every
    steps = -(-steps // every) * every  # so that steps with the penalty have the share they have in training
    rate = matrix_rate(runtime.device, DTYPES[runtime.precision])
    speeds = (
        speed(lambda: PretrainStage(context), context, steps, rate),
        speed(lambda: FusionStage(context, config.run_dir), context, steps, rate),
    )
    heaviest = _heaviest(context) if profile else None
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
        profile=heaviest,
    )


def speed(make: Callable[[], Steps], context: Context, steps: int, rate: float, flop: int | None = None) -> Speed:
    """Time `steps` steps of what `make` builds, on random images.

    Args:
        rate: of `matrix_rate`.
        flop: per image, to compare with; without it, they are counted.
    """
    runtime, device = context.runtime, context.runtime.device
    runtime.free_memory()
    torch.manual_seed(context.config.seed)
    batch = random_batch(context.order, context.config.data.image_size)
    stage, counted, peak = count(make, context, batch)
    for number in range(WARM_UP):
        stage.step(number, batch)
    runtime.accelerator.wait_for_everyone()
    if device.type == "cuda":  # only now: cuDNN tries its algorithms in the first step, the largest of them too
        torch.cuda.reset_peak_memory_stats()
    began = _now(device)
    for number in range(WARM_UP, WARM_UP + steps):
        stage.step(number, batch)
    queued = time.perf_counter() - began
    seconds = _now(device) - began
    runtime.optimizing.check()
    if runtime.optimizing.failure:
        raise UserError(runtime.optimizing.failure)
    flop = flop or counted
    images_per_second = sum(len(micro.images) for micro in batch) * steps / seconds
    return Speed(
        stage=stage.name,
        images_per_second=images_per_second,
        seconds_per_step=seconds / steps,
        flop_per_image=flop,
        flop_per_second=images_per_second * flop,
        matrix_flop_per_second=rate,
        share=images_per_second * flop / rate,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else peak,
        host_share=queued / seconds,
    )


def count(make: Callable[[], Steps], context: Context, batch: list[MicroBatch]) -> tuple[Steps, int, int]:
    """Build a stage; count its FLOP per image, and the bytes of its tensors at the peak of a step (0 on a GPU).

    FLOP are counted in steps of one micro-batch, which compute nothing twice, with the penalty and without; bytes in a
    whole step, once Adam has its state.
    """
    counter = Counter()
    with context.runtime.uncompiled(), counter:
        stage = make()
        stage.step(0, batch[:1])
        penalised = counter.flop
        stage.step(1, batch[:1])
        every = context.config.penalty.every
        flop = (penalised + (every - 1) * (counter.flop - penalised)) // (every * len(batch[0].images))
        counter.peak_bytes = 0
        if context.runtime.device.type == "cpu":  # on a GPU torch tells
            stage.step(0, batch)
    return stage, flop, counter.peak_bytes


def _heaviest(context: Context) -> str:
    """The ten heaviest operations of a fusion step; on a GPU, its kernels."""
    device = context.runtime.device
    stage = FusionStage(context, context.config.run_dir)
    batch = random_batch(context.order, context.config.data.image_size)
    for number in range(WARM_UP):
        stage.step(number, batch)
    _now(device)
    activity, order = ProfilerActivity.CPU, "self_cpu_time_total"
    if device.type == "cuda":
        activity, order = ProfilerActivity.CUDA, "self_device_time_total"
    with profiler(activities=[activity], acc_events=True) as seen:
        stage.step(WARM_UP, batch)
        _now(device)
    table = seen.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=60)
    return f"The heaviest operations of a fusion step:\n{table}"


def random_batch(order: Order, size: int) -> list[MicroBatch]:
    """This rank's micro-batches of a step: random pixels of `size` x `size`, always the same."""
    random, micro_batches = torch.Generator().manual_seed(0), []
    shape = (order.micro_batch_size, 3, size, size)
    for place in order.slices():
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        micro_batches.append(MicroBatch(images.pin_memory() if torch.cuda.is_available() else images, place))
    return micro_batches


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP per second of dense matrix products in `dtype`, the best of three tries."""
    side = SIDES[device.type]
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


def as_text(report: Report) -> str:
    """A table for people."""
    batch = f"batch {report.global_batch_size}, micro-batch {report.micro_batch_size}"
    lines = [f"{report.device}; {report.precision}; {report.ranks} ranks; {report.image_size} px; {batch}"]
    lines.append(
        f"{'':<10}{'images/s':>10}{'ms/step':>10}{'GFLOP/image':>13}{'TFLOP/s':>10}{'share':>7}{'GiB':>10}{'host':>6}"
    )
    lines += [
        f"{each.stage:<10}{each.images_per_second:>10.4g}{1000 * each.seconds_per_step:>10.4g}"
        f"{each.flop_per_image / 1e9:>13.4g}{each.flop_per_second / 1e12:>10.3g}{each.share:>7.0%}"
        f"{each.peak_memory_bytes / 2**30:>10.3g}{each.host_share:>6.0%}"
        for each in report.speeds
    ]
    limit = report.speeds[0].matrix_flop_per_second / 1e12
    lines.append(f"share: of {limit:.3g} TFLOP/s, dense matrix products measured here at this precision")
    return "\n".join([*lines, *([report.profile] if report.profile else [])])


def _now(device: torch.device) -> float:
    """Once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
