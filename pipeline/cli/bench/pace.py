"""How long a step takes here and what memory it needs: about a second's look at each stage, for `doctor`.

On a CPU, where a step of a whole batch may take minutes, a few images are timed, then more as long as there is time.
What a whole step takes is reckoned from them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.cli.bench.counting import Counter
from pipeline.cli.bench.step import WARM_UP, random_batch, without_data
from pipeline.common.progress import progress
from pipeline.config.schema import Config
from pipeline.data.loading.loader import MicroBatch
from pipeline.training.context import Context
from pipeline.training.fusion import FusionStage
from pipeline.training.pretrain import PretrainStage
from pipeline.training.stage import Stage

SECONDS = 1.0
"""What a stage may take, about. A step that takes longer is timed once."""
FEWEST = 2
"""Images of a micro-batch that are timed first, on a CPU."""
GRADIENT = 4
"""Bytes of a parameter's."""


@dataclass(frozen=True)
class Line:
    """What grows evenly with the images of a micro-batch."""

    fixed: float
    per_image: float

    @classmethod
    def through(cls, one: tuple[int, float], other: tuple[int, float]) -> "Line":
        """Of two measurements, images and value each; it never falls."""
        per_image = max(0.0, (other[1] - one[1]) / max(1, other[0] - one[0]))
        return cls(other[1] - per_image * other[0], per_image)

    def at(self, images: int) -> float:
        return self.fixed + self.per_image * images


@dataclass(frozen=True)
class Pace:
    """Of one stage, in one process."""

    stage: str
    steps: int
    seconds_per_step: float
    peak_bytes: Line
    """Of all tensors in a step, by the images of a micro-batch."""


def paces(config: Config) -> list[Pace]:
    """Of pre-training and of the fusion training, in this process alone.

    Raises:
        UserError: the device or the precision cannot be had.
        torch.OutOfMemoryError: a micro-batch does not fit into the GPU.
    """
    speed = config.speed.model_copy(update={"compile": "no"})  # the compiler takes a minute
    context = without_data(config.model_copy(update={"speed": speed}))
    stages: list[tuple[Callable[[], Stage], int]] = [
        (lambda: PretrainStage(context), 1),
        (lambda: FusionStage(context, config.run_dir), config.penalty.every),
    ]
    found = [_pace(make, context, every) for make, every in progress(stages, "measuring", len(stages), "stages")]
    context.runtime.free_memory()
    context.runtime.close()
    return found


def _pace(make: Callable[[], Stage], context: Context, every: int) -> Pace:
    """`every`: steps from one penalty to the next."""
    context.runtime.free_memory()
    torch.manual_seed(context.config.seed)
    batch = random_batch(context.order, context.config.data.image_size)[
        :2
    ]  # of two: what accumulation repeats is in it
    measure = _on_gpu if context.runtime.device.type == "cuda" else _on_cpu
    stage, seconds, peak = measure(make, batch, every)
    return Pace(stage.name, stage.total_steps, seconds * context.order.accumulation / len(batch), peak)


def _on_gpu(make: Callable[[], Stage], batch: list[MicroBatch], every: int) -> tuple[Stage, float, Line]:
    """A stage, the seconds of its step on `batch`, and its memory."""
    stage, size = make(), len(batch[0].images)
    for number in range(WARM_UP):
        stage.step(number * every, batch)
    torch.cuda.synchronize()
    fixed = torch.cuda.memory_allocated() + GRADIENT * _trained(stage)
    torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(stage, batch, every)
    return stage, seconds, Line.through((0, fixed), (size, torch.cuda.max_memory_allocated()))


def _on_cpu(make: Callable[[], Stage], batch: list[MicroBatch], every: int) -> tuple[Stage, float, Line]:
    """As `_on_gpu`, from two smaller batches."""
    whole, size, counter = len(batch[0].images), FEWEST, Counter()
    with counter:
        stage = make()
        first = _timed(stage, 0, _cut(batch, size))
    fixed = counter.bytes + GRADIENT * _trained(stage)
    seconds = _seconds(stage, _cut(batch, size), every, first)
    larger = min(whole, max(2 * size, int(size * SECONDS / (3 * seconds))))
    counter.peak_bytes = 0
    with counter:
        first = _timed(stage, every, _cut(batch, larger))
    again = _seconds(stage, _cut(batch, larger), every, first)
    time_of = Line.through((size, seconds), (larger, again))
    return stage, time_of.at(whole), Line.through((0, fixed), (larger, counter.peak_bytes))


def _cut(batch: list[MicroBatch], size: int) -> list[MicroBatch]:
    """The same micro-batches with the first `size` images of each."""
    starts = [micro.span.start for micro in batch]
    return [MicroBatch(m.images[:size], slice(start, start + size)) for m, start in zip(batch, starts, strict=True)]


def _trained(stage: Stage) -> int:
    """Parameters that the optimizers change."""
    return sum(p.numel() for each in stage.optimizers.values() for group in each.param_groups for p in group["params"])


def _seconds(stage: Stage, batch: list[MicroBatch], every: int, counted: float = 0.0) -> float:
    """Of a step, in the mean: one in `every` has the penalty. `counted`: what that one took while it was counted."""
    penalised = counted if counted > SECONDS else _timed(stage, every, batch)
    if every == 1:
        return penalised
    return (penalised + (every - 1) * _timed(stage, every + 1, batch)) / every


def _timed(stage: Stage, number: int, batch: list[MicroBatch]) -> float:
    began = time.perf_counter()
    stage.step(number, batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
