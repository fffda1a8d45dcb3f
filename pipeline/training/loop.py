"""The loop both stages run in: resume, step, log, save, show, stop."""

import math
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common import files
from pipeline.common.errors import Interrupted, StoppedElsewhere, UserError
from pipeline.common.signals import Deferred
from pipeline.config.load import dump
from pipeline.data.loading.loader import FaceImages, MicroBatch
from pipeline.training import checkpoint
from pipeline.training.context import Context
from pipeline.training.opening import opening
from pipeline.training.resume import CheckpointWriter, resume
from pipeline.training.stage import Stage
from pipeline.training.tracking import Tracker


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
    every = config.tracking
    runtime.say(opening(stage, context, done))
    images = len(context.train) if isinstance(context.train, FaceImages) else math.inf  # of a stream, unknown
    epoch = images / config.training.global_batch_size
    tracker = Tracker(config, runtime, stage.name, done, total, epoch)
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
            # A save that was due while steps were skipped is made up for.
            save_is_due = done == total or done // every.checkpoint_every > writer.saved // every.checkpoint_every
            log_is_due = done == 1 or done % every.log_every == 0
            tracker.saved = writer.saved
            if save_is_due or log_is_due:  # at a save, too: then a resumed run logs the same means
                tracker.flush(done, _learning_rates(stage))
            if runtime.optimizing.failure:
                folder = _describe_failed_step(stage, context, done, batch, terms)
                ranks.agree(UserError(f"{runtime.optimizing.failure} ({folder})"))
            # While steps are skipped the weights may be spoilt: saving them would drop good ones.
            saves = save_is_due and (done == total or not runtime.optimizing.skipping)
            shows = done == total or done % every.image_every == 0
            if saves or shows:
                with runtime.uncompiled():
                    stage.settle()
                    if saves:
                        writer.save(done)
                    if shows:
                        ranks.on_main(lambda: tracker.show(stage.show(), done))  # noqa: B023 (called at once)
        writer.finish()
        tracker.tell_saved(writer.saved)


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
        tracker.tell_saved(writer.saved)
    except (UserError, OSError, StoppedElsewhere):
        if getattr(stop, "exit_code", 2) == 2:
            raise stop from None
        raise


def _describe_failed_step(
    stage: Stage, context: Context, step: int, batch: list[MicroBatch], terms: dict[str, Tensor]
) -> Path:
    """Write `not-finite-step-N/rankNNNN.json` with terms, gradients, weights and images; returns the folder."""
    optimizing, rank = context.runtime.optimizing, context.runtime.ranks.rank
    folder = context.config.run_dir / stage.name / f"not-finite-step-{step:08d}"
    values = {name: float(term) for name, term in terms.items()}
    images = torch.cat([micro.images for micro in batch]).float()
    parameters = {
        f"{name}.{key}": value.detach()
        for name, module in stage.modules.items()
        for key, value in module.named_parameters()
    }
    known = {
        "step": step,
        "rank": rank,
        "reason": optimizing.failure,
        "terms": {name: value if math.isfinite(value) else str(value) for name, value in values.items()},
        "terms_not_finite": [name for name, value in values.items() if not math.isfinite(value)],
        "gradients_not_finite": optimizing.bad_gradients,
        "parameters_not_finite": [name for name, value in parameters.items() if not value.isfinite().all()],
        "largest_parameters": {name: float(value.abs().nan_to_num().max()) for name, value in parameters.items()},
        "batch": [key for micro in batch for key in micro.keys],
        "images": {name: float(getattr(images, name)()) for name in ("min", "max", "mean", "std")},
        "loss_scale": optimizing.loss_scale,
        "skipped_steps": optimizing.skipped,
    }
    with suppress(OSError):  # the run stops for a better reason
        files.write_json(folder / f"rank{rank:04d}.json", known)
    return folder
