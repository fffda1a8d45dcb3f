"""The loop both stages run in: resume, step, log, show, save, stop."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.optimizer import AcceleratedOptimizer
from PIL.Image import Image
from torch import Tensor, nn

from pipeline.common import files
from pipeline.common.errors import Interrupted, StoppedElsewhere, UserError
from pipeline.common.signals import Deferred
from pipeline.config.load import dump, validate
from pipeline.config.schema import Config
from pipeline.data.loading.loader import MicroBatch
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.context import Setup
from pipeline.training.ranks import Ranks
from pipeline.training.tracking import Tracker
from pipeline.training.writer import Writer, on_host

FIXED = (
    *("seed", "model", "perceptual", "data.image_size", "data.crop", "data.horizontal_flip"),
    *("training.global_batch_size", "training.micro_batch_size", "training.ema_decay"),
    *("fusion.reading", "fusion.map"),
)
"""What a resumed run may not change: it would no longer be the same run."""


class Stage(Protocol):
    """What the loop needs of a stage."""

    name: str
    total_steps: int
    modules: dict[str, nn.Module]
    """What a checkpoint holds of weights and buffers."""
    optimizers: dict[str, AcceleratedOptimizer]

    def begin(self) -> None:
        """Called once on a fresh start, not on resume, by every rank."""

    def step(self, step: int, batch: list[MicroBatch]) -> dict[str, Tensor]:
        """One optimizer step on this rank's micro-batches; scalars by their TensorBoard names. `step` is from 0."""

    def settle(self) -> None:
        """Make the weights for use ready for use: called before saving and showing."""

    def pictures(self) -> dict[str, Image]:
        """What TensorBoard shows; called on the main rank only, after `settle`."""


class Sums:
    """Means of terms over the micro-batches of a step."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.sums: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().mean()

    def means(self) -> dict[str, Tensor]:
        return {name: value / self.count for name, value in self.sums.items()}

    def weighted_means(self, weights: dict[str, float]) -> dict[str, Tensor]:
        """`means`, and each loss/NAME times its weight as loss_weighted/NAME."""
        means = self.means()
        return means | {f"loss_weighted/{name}": weight * means[f"loss/{name}"] for name, weight in weights.items()}


def run(stage: Stage, setup: Setup) -> None:
    """Train `stage` from its newest checkpoint, or from its beginning, to its last step.

    Between two steps the ranks agree whether to go on. So a signal, a full disk or a bad image on one of them stops
    all of them there, with the steps done so far saved.

    Raises:
        Interrupted: after a request to stop.
        UserError: if the run cannot go on.
        StoppedElsewhere: for either of them, on other ranks than the main one.
    """
    runtime, ranks, tracking = setup.runtime, setup.runtime.ranks, setup.config.tracking
    done = saved = _resume(stage, setup)
    due = False  # a save
    if done >= stage.total_steps:
        folder = checkpoint_folder(setup.config, stage.name)
        runtime.say(f"{stage.name}: already finished at step {done} ({folder})")
        return
    # Only now: a configuration that is refused leaves the run as it was.
    ranks.together(setup.read_ahead)
    ranks.on_main(lambda: files.write_text(setup.config.run_dir / "config.yaml", dump(setup.config)))
    tracker = Tracker(setup.config.run_dir / "tensorboard" / stage.name, runtime, stage.name, done, stage.total_steps)
    batches = setup.train.micro_batches(setup.order, done, stage.total_steps)
    with closing(batches), closing(tracker), closing(Writer(ranks)) as writer:
        while done < stage.total_steps:
            batch, failure = _next(batches, tracker, ranks.signals)
            try:
                ranks.agree(failure or writer.failure)
            except (Interrupted, StoppedElsewhere, UserError, OSError) as stop:
                _save_and_stop(stage, setup, tracker, writer, done, saved, stop)
                raise
            _set_learning_rates(stage, setup.config.optimizer.schedule, done)
            terms = stage.step(done, batch)
            done += 1
            tracker.add(terms, setup.config.training.global_batch_size)
            last = done == stage.total_steps
            due, show = due or last or done % tracking.checkpoint_every == 0, last or done % tracking.image_every == 0
            if due or done == 1 or done % tracking.log_every == 0:  # at a save: a resumed run logs the same means
                tracker.flush(done, _learning_rates(stage))
            if runtime.failure:
                folder = _dump(stage, setup, done, batch, terms)
                ranks.agree(UserError(f"{runtime.failure} ({folder})"))
            # While steps are skipped the weights may be spoilt: they would take the place of good ones.
            save = due and (last or not runtime.skipping)
            with runtime.uncompiled():
                if save or show:
                    stage.settle()
                if save:
                    _save(stage, setup, writer, done)
                    saved, due = done, False
                if show:
                    ranks.on_main(lambda: tracker.pictures(stage.pictures(), done))  # noqa: B023 (called at once)
        writer.finish()


def _next(
    batches: Iterator[list[MicroBatch]], tracker: Tracker, signals: Deferred
) -> tuple[list[MicroBatch], Exception | None]:
    """The next batch, or why there is none: also for a signal, which the ranks agree on next."""
    with tracker.waiting():
        try:
            with signals.waiting():
                return next(batches), None
        except (UserError, OSError) as error:
            return [], error
        except Interrupted:
            return [], None


def checkpoint_folder(config: Config, stage: str) -> Path:
    return config.run_dir / stage / "checkpoints"


def _set_learning_rates(stage: Stage, schedule: str, step: int) -> None:
    """From the step alone, so that a resumed run needs no memory of it."""
    share = (1 + math.cos(math.pi * step / stage.total_steps)) / 2 if schedule == "cosine" else 1.0
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]


def _learning_rates(stage: Stage) -> dict[str, float]:
    return {f"learning_rate/{name}": o.param_groups[0]["lr"] for name, o in stage.optimizers.items()}


def _save_and_stop(
    stage: Stage, setup: Setup, tracker: Tracker, writer: Writer, step: int, saved: int, stop: BaseException
) -> None:
    """Every rank is here, between two steps. What stopped the run may stop this too: it is told first."""
    try:
        if step > saved:
            tracker.flush(step, _learning_rates(stage))
            with setup.runtime.uncompiled():
                stage.settle()
            _save(stage, setup, writer, step)
        writer.finish()
    except (UserError, OSError, StoppedElsewhere):
        if getattr(stop, "exit_code", 2) == 2:
            raise stop from None
        raise


def _save(stage: Stage, setup: Setup, writer: Writer, step: int) -> None:
    """The main rank writes; a failure there stops all."""
    runtime = setup.runtime
    if runtime.ranks.is_main:
        weights = on_host(
            {
                f"{name}.{key}": value
                for name, module in stage.modules.items()
                for key, value in module.state_dict().items()
            }
        )
        optimizers = on_host({name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()})
        state = {
            "stage": stage.name,
            "images_seen": step * setup.config.training.global_batch_size,
            "config": setup.config.as_dict(),
            "data_hash": setup.train.content_hash,
            "skipped_steps": runtime.skipped_steps,
        }
        optimizers["scaler"] = runtime.scaler_state()
        folder = checkpoint_folder(setup.config, stage.name)

        def write() -> None:
            path = checkpoint.save(folder, step, weights, optimizers, state, setup.config.tracking.keep_checkpoints)
            runtime.say(f"{stage.name}: saved {path}")

        writer.start(write)
    if not setup.config.tracking.asynchronous_saves:
        writer.finish()


def _dump(stage: Stage, setup: Setup, step: int, batch: list[MicroBatch], terms: Mapping[str, Tensor]) -> Path:
    """What this rank knows of a step that could not be applied; returns the folder."""
    folder = setup.config.run_dir / stage.name / f"not-finite-step-{step:08d}"
    values = {name: float(term) for name, term in terms.items()}
    images = torch.cat([micro.images for micro in batch]).float()
    parameters = {
        f"{name}.{key}": value.detach()
        for name, module in stage.modules.items()
        for key, value in module.named_parameters()
    }
    dump = {
        "step": step,
        "rank": setup.runtime.ranks.rank,
        "reason": setup.runtime.failure,
        "terms": {name: value if math.isfinite(value) else str(value) for name, value in values.items()},
        "terms_not_finite": [name for name, value in values.items() if not math.isfinite(value)],
        "gradients_not_finite": setup.runtime.bad_gradients,
        "parameters_not_finite": [name for name, value in parameters.items() if not value.isfinite().all()],
        "largest_parameters": {name: float(value.abs().nan_to_num().max()) for name, value in parameters.items()},
        "batch": [key for micro in batch for key in micro.keys],
        "images": {name: float(getattr(images, name)()) for name in ("min", "max", "mean", "std")},
        "loss_scale": setup.runtime.loss_scale,
        "skipped_steps": setup.runtime.skipped_steps,
    }
    with suppress(OSError):  # the run stops for a better reason
        files.write_json(folder / f"rank{setup.runtime.ranks.rank:04d}.json", dump)
    return folder


def _resume(stage: Stage, setup: Setup) -> int:
    """Returns the steps that are done."""
    runtime, ranks, folder = setup.runtime, setup.runtime.ranks, checkpoint_folder(setup.config, stage.name)

    def choose() -> Checkpoint | None:
        found, passed_over = checkpoint.newest(folder)
        for reason in passed_over:
            runtime.say(f"{stage.name}: passed over {reason}")
        return found

    found = read_alike(ranks, choose)
    if found is None:
        with runtime.uncompiled():
            stage.begin()
        return 0
    ranks.together(lambda: _check_same_run(found, setup))
    ranks.together(lambda: restore(found, stage.modules))
    for name, optimizer in stage.optimizers.items():
        for group in found.optimizers[name]["param_groups"]:  # before: it decides where the counts of steps are kept
            group["fused"] = optimizer.defaults["fused"]
        optimizer.load_state_dict(found.optimizers[name])
        for parameter, memory in optimizer.state.items():  # a fused step wants them laid out alike
            for key, value in memory.items():
                if value.shape == parameter.shape:
                    memory[key] = torch.empty_like(parameter).copy_(value)
        for group in optimizer.param_groups:  # as configured now, not then
            group["betas"] = optimizer.defaults["betas"]
    runtime.load_scaler_state(found.optimizers["scaler"])
    runtime.skipped_steps = found.state["skipped_steps"]
    runtime.say(f"{stage.name}: resumed from {found.path}")
    return found.step


def read_alike(ranks: Ranks, choose: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that `choose` finds on the main rank, on every rank; the folder may be changing meanwhile.

    Raises:
        UserError: if a rank cannot read it, or reads another of its name.
        StoppedElsewhere: then, on other ranks than the main one.
    """
    mine: list[Checkpoint] = []

    def name() -> tuple[str, str] | None:
        mine.extend(filter(None, [choose()]))
        return (str(mine[0].path), mine[0].digest) if mine else None

    chosen = ranks.on_main(name)
    if chosen is None:
        return None

    def read() -> Checkpoint:
        found = mine[0] if mine else checkpoint.load(Path(chosen[0]))
        if found.digest != chosen[1]:
            raise UserError(f"{found.path}: not the weights that rank 0 reads; all ranks must share this folder")
        return found

    return ranks.together(read)


def restore(found: Checkpoint, modules: Mapping[str, nn.Module]) -> None:
    """Load the weights of `modules` from a checkpoint.

    Raises:
        UserError: if they do not fit.
    """
    for name, module in modules.items():
        try:
            module.load_state_dict(found.module(name))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{found.path}: the weights of the {name} do not fit: {reason}") from None


def _check_same_run(found: Checkpoint, setup: Setup) -> None:
    if found.state["data_hash"] != setup.train.content_hash:
        raise UserError(f"{found.path}: was trained on other shards than {setup.train.name}; set another run_dir")
    then = validate(found.state["config"], str(found.path)).as_dict()  # with today's defaults where a key is newer
    now = setup.config.as_dict()
    for key in FIXED:
        before, after = _look_up(then, key), _look_up(now, key)
        if before != after:
            raise UserError(f"{key}: {after} now, but {before} in {found.path}; change it back or set another run_dir")


def _look_up(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
