"""The loop both stages run in: resume, step, log, save, show, stop."""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from pipeline.common import files
from pipeline.common.errors import Interrupted, StoppedElsewhere, UserError
from pipeline.common.signals import Deferred
from pipeline.config.load import dump
from pipeline.config.schema import TrackingConfig
from pipeline.data.loading.loader import MicroBatch
from pipeline.training import checkpoint, failed_step
from pipeline.training.checkpoint_writer import CheckpointWriter
from pipeline.training.context import Context
from pipeline.training.resume import resume
from pipeline.training.stage import Stage
from pipeline.training.tracking import Tracker


@dataclass(frozen=True)
class Schedule:
    """What is due after how many steps; saves and pictures are due after the last step, too."""

    tracking: TrackingConfig
    total_steps: int

    def save_is_due(self, done: int, saved: int) -> bool:
        """Whether a multiple of `checkpoint_every` has been reached since the save after `saved` steps."""
        every = self.tracking.checkpoint_every
        return done == self.total_steps or done // every > saved // every

    def log_is_due(self, done: int) -> bool:
        return done == 1 or done % self.tracking.log_every == 0

    def pictures_are_due(self, done: int) -> bool:
        return done == self.total_steps or done % self.tracking.image_every == 0


def run(stage: Stage, context: Context) -> None:
    """Train `stage` from its newest checkpoint, or from its beginning, to its last step.

    Between two steps the ranks agree whether to go on. So a signal, a full disk or a bad image on one of them stops
    all of them there, with the steps done so far saved.

    Raises:
        Interrupted: after a request to stop.
        UserError: if the run cannot go on.
        StoppedElsewhere: for either of them, on other ranks than the main one.
    """
    config, runtime, ranks = context.config, context.runtime, context.runtime.ranks
    done, total = resume(stage, context), stage.total_steps
    if done >= total:
        saved = checkpoint.folder_of(config.run_dir, stage.name)
        runtime.say(f"{stage.name}: already finished at step {done} ({saved})")
        return
    # Only now: a configuration that is refused leaves the run as it was.
    ranks.together(context.read_ahead)
    ranks.on_main(lambda: files.write_text(config.run_dir / "config.yaml", dump(config)))
    schedule = Schedule(config.tracking, total)
    tracker = Tracker(config.run_dir / "tensorboard" / stage.name, runtime, stage.name, done, total)
    batches = context.train.micro_batches(context.order, done, total)
    with closing(batches), closing(tracker), closing(CheckpointWriter(stage, context, done)) as writer:
        while done < total:
            batch, failure = _next(batches, tracker, ranks.signals)
            try:
                ranks.agree(failure or writer.failure)
            except (Interrupted, StoppedElsewhere, UserError, OSError) as stop:
                _save_and_stop(stage, context, tracker, writer, done, stop)
                raise
            _set_learning_rates(stage, config.optimizer.schedule, done)
            terms = stage.step(done, batch)
            done += 1
            tracker.add(terms, config.training.global_batch_size)
            save_is_due = schedule.save_is_due(done, writer.saved)
            if save_is_due or schedule.log_is_due(done):  # at a save, too: then a resumed run logs the same means
                tracker.flush(done, _learning_rates(stage))
            if runtime.optimizing.failure:
                folder = failed_step.describe(stage, context, done, batch, terms)
                ranks.agree(UserError(f"{runtime.optimizing.failure} ({folder})"))
            # While steps are skipped the weights may be spoilt: saving them would drop good ones.
            saves = save_is_due and (done == total or not runtime.optimizing.skipping)
            shows = schedule.pictures_are_due(done)
            if saves or shows:
                with runtime.uncompiled():
                    stage.settle()
                    if saves:
                        writer.save(done)
                    if shows:
                        ranks.on_main(lambda: tracker.pictures(stage.pictures(), done))  # noqa: B023 (called at once)
        writer.finish()


def _next(
    batches: Iterator[list[MicroBatch]], tracker: Tracker, signals: Deferred
) -> tuple[list[MicroBatch], Exception | None]:
    """The next batch, or why there is none; for a signal without a reason, since the ranks agree on signals next."""
    with tracker.waiting():
        try:
            with signals.waiting():
                return next(batches), None
        except (UserError, OSError) as error:
            return [], error
        except Interrupted:
            return [], None


def _set_learning_rates(stage: Stage, schedule: str, step: int) -> None:
    """From the step alone, so that a resumed run needs no memory of it."""
    share = (1 + math.cos(math.pi * step / stage.total_steps)) / 2 if schedule == "cosine" else 1.0
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]


def _learning_rates(stage: Stage) -> dict[str, float]:
    return {f"learning_rate/{name}": o.param_groups[0]["lr"] for name, o in stage.optimizers.items()}


def _save_and_stop(
    stage: Stage, context: Context, tracker: Tracker, writer: CheckpointWriter, done: int, stop: BaseException
) -> None:
    """Save what is done; every rank is here, between two steps.

    Raises:
        Exception: if saving fails; `stop` itself if that is an error too, since it may be the cause.
    """
    try:
        if done > writer.saved:
            tracker.flush(done, _learning_rates(stage))
            with context.runtime.uncompiled():
                stage.settle()
            writer.save(done)
        writer.finish()
    except (UserError, OSError, StoppedElsewhere):
        if getattr(stop, "exit_code", 2) == 2:
            raise stop from None
        raise
