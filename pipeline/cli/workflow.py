"""The stages as a user runs them, and all of them in a row. They hand on to each other through files only."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from pipeline.cli.fuse import FALLING, about
from pipeline.common import files
from pipeline.common.devices import slow_precision
from pipeline.common.errors import LostRank, UserError
from pipeline.config.schema import Config
from pipeline.data.loading.loader import FaceImages
from pipeline.data.loading.streaming import StreamedFaces
from pipeline.data.loading.workers import lost_worker
from pipeline.data.shards.format import PLAN, load_manifest
from pipeline.data.synth import PAINTED
from pipeline.evaluation.report import VERSION, evaluate
from pipeline.evaluation.table import as_table
from pipeline.inference import bundle as bundles
from pipeline.inference import fuse, model_card, picture_files
from pipeline.training import checkpoint, loop
from pipeline.training.context import Context
from pipeline.training.export import export_bundle, provenance
from pipeline.training.fusion import FusionStage
from pipeline.training.heartbeat import leave
from pipeline.training.pretrain import PretrainStage
from pipeline.training.ranks import AtOnce
from pipeline.training.runtime import Runtime
from pipeline.training.status import Status
from pipeline.training.trackers import check_installed

STRIPS, STRIP = 4, 6
"""Held-out pairs in the picture that `run` ends with, and fused images of each."""


def pretrain(config: Config) -> None:
    """Pre-train E and G, or go on with it."""
    with _job(config) as runtime:
        _pretrain(config, runtime)
        runtime.ranks.agree()  # a signal since the last step is for what follows this command


def train(config: Config, pretrained: Path | None) -> None:
    """Train the fusion, or go on with it, from a checkpoint of pre-training (None: this run's own)."""
    with _job(config) as runtime:
        _train(config, runtime, pretrained)


def run(config: Config) -> None:
    """Every stage in a row; what is done is skipped. Ends with the paths of what it made.

    Raises:
        UserError: if a stage cannot go on.
    """
    with _job(config) as runtime:
        at_once = AtOnce(runtime.ranks)
        at_once.on_main(lambda: _prepare_data(config))
        _pretrain(config, runtime)
        runtime.free_memory()
        _train(config, runtime, None)
        at_once.on_main(lambda: _export(config))
        bundle = at_once.together(lambda: _made_bundle(config, runtime))
        metrics = _evaluate(config, bundle, at_once)
        at_once.on_main(lambda: _show(config, bundle, metrics))


@contextmanager
def _job(config: Config) -> Iterator[Runtime]:
    """One process of a job: it meets the other ranks, and the main one holds the run folder and tells its status."""
    status = Status(config.run_dir / "status.json")
    try:
        runtime = Runtime(config.training, config.speed)
    except (UserError, LostRank) as refusal:
        _tell_refusal(config.run_dir, status, refusal)
        raise
    runtime.status = status
    if slow := slow_precision(runtime.device.type, runtime.precision):
        runtime.say(slow)

    def lost(reason: str) -> None:
        if runtime.ranks.is_main:
            status.write("failed", LostRank.exit_code, reason)
        leave(f"lost another rank: {reason}; {runtime.ranks.when_lost}")

    with ExitStack() as stack:
        stack.enter_context(runtime.ranks.watched(config.run_dir, lost))
        runtime.ranks.on_main(lambda: _claim(config.run_dir, status, stack))
        runtime.ranks.on_main(lambda: check_installed(config.tracking.trackers))
        with runtime.ranks.lost_ranks_named():  # before the status is told
            try:
                yield runtime
            except torch.OutOfMemoryError:
                size = config.training.micro_batch_size
                raise UserError(f"training.micro_batch_size: {size} needs more GPU memory than there is") from None
            except RuntimeError as error:
                if str(error).startswith("DataLoader worker"):
                    raise lost_worker() from None
                if "DefaultCPUAllocator" not in str(error):
                    raise
                raise UserError(
                    "training.micro_batch_size, model, data.image_size: more memory than there is"
                ) from None
    runtime.close()


def _tell_refusal(run_dir: Path, status: Status, refusal: UserError | LostRank) -> None:
    """What an earlier job has left in status.json is not true of this one; where another runs now, it stays."""
    if os.environ.get("RANK", "0") == "0" and status.path.exists():
        with suppress(UserError), checkpoint.claimed(run_dir):
            status.write("failed", getattr(refusal, "exit_code", 2), str(refusal))


def _claim(run_dir: Path, status: Status, stack: ExitStack) -> None:
    stack.enter_context(checkpoint.claimed(run_dir))
    stack.push(status)  # before it says `running`: a signal may come as soon as it does
    status.tell({})


def _pretrain(config: Config, runtime: Runtime) -> None:
    context = open_context(config, runtime)
    loop.run(PretrainStage(context), context)


def _train(config: Config, runtime: Runtime, pretrained: Path | None) -> None:
    context = open_context(config, runtime)
    saved = checkpoint.steps(checkpoint.folder_of(config.run_dir, FusionStage.name))
    if pretrained and saved:
        runtime.say(f"train: --init {pretrained} is not used: {saved[-1]} goes on; for a new start set another run_dir")
    loop.run(FusionStage(context, pretrained or config.run_dir / "pretrain"), context)


def open_context(config: Config, runtime: Runtime) -> Context:
    """What the stages work on: configuration, runtime, and the shards, found alike on every rank.

    Raises:
        UserError: the shards cannot be read, or differ from those of rank 0.
    """
    train, held_out = runtime.ranks.together(lambda: _open_shards(config))
    expected = runtime.ranks.on_main(lambda: train.content_hash)
    runtime.ranks.together(lambda: _check_same_data(train, expected))
    torch.manual_seed(config.seed)  # the initial weights, alike on every rank; nothing later draws from it
    return Context(config, runtime, train, held_out)


def _check_same_data(train: FaceImages | StreamedFaces, expected: str) -> None:
    if train.content_hash != expected:
        raise UserError(f"{train.name}: other training data than rank 0 has there; bring this node's up to date")


def _open_shards(config: Config) -> tuple[FaceImages | StreamedFaces, FaceImages]:
    if config.data.stream is not None:
        test = config.shards_dir / "test"
        if not test.exists():
            raise UserError(f"{test}: no such folder; with data.stream, too, held-out images are read from there")
        held_out = FaceImages(test, config.data)
        if len(held_out) < 2:
            raise UserError(f"{held_out.name}: {len(held_out)} image; at least 2 are needed to show a pair")
        return StreamedFaces(config.data.stream, config.data, config.seed), held_out
    train = FaceImages(config.shards_dir / "train", config.data)
    held_out = FaceImages(_held_out(config), config.data)
    if len(train) < 2:
        raise UserError(f"{train.name}: {len(train)} image; training fuses pairs and needs at least 2")
    return train, held_out


def _held_out(config: Config) -> Path:
    """The split that is shown and measured: `test`, or `train` where `test` does not hold a pair."""
    test, train = config.shards_dir / "test", config.shards_dir / "train"
    return test if test.exists() and load_manifest(test).samples >= 2 else train


def _prepare_data(config: Config) -> None:
    folder = config.shards_dir
    if config.data.stream is not None:
        return
    if config.data.source is None:
        load_manifest(folder / "train")  # says what to do if it is not there
        return
    source = Path(config.data.source)
    from pipeline.data.shards.writing import write_shards
    from pipeline.data.source.photographs import listed

    if config.data.source == PAINTED:
        from pipeline.common.processes import default_workers
        from pipeline.data.synth.faces import write_faces

        source = config.run_dir / "faces"
        painted = _read_json(source / "synth.json").get("count", config.data.synth_count)
        if painted != config.data.synth_count and (folder / PLAN).exists():  # before more are painted
            raise UserError(
                f"data.synth_count: {config.data.synth_count} now, but {painted} were painted and sharded in "
                f"{config.run_dir}; change it back or set another run_dir"
            )
        write_faces(source, config.data.synth_count, seed=config.seed, workers=default_workers())
    written = write_shards(source, folder, split=config.data.split, max_rejected=config.data.max_rejected)
    print(f"shard: {written.samples} images in {folder}, {written.written} shards new", flush=True)
    if written.ignored:
        print(f"shard: ignored as no images: {listed(written.ignored)}", flush=True)


def _export(config: Config) -> None:
    """The bundle of the newest checkpoint, unless it is there."""
    folder = config.run_dir / "bundle"
    found = checkpoint.find(checkpoint.folder_of(config.run_dir, "train"))
    if _trained(folder) != provenance(found):
        export_bundle(found, folder)
        print(f"export: {folder}", flush=True)


def _made_bundle(config: Config, runtime: Runtime) -> bundles.Bundle:
    """That bundle, on this rank's device, to be evaluated as asked for now."""
    bundle = bundles.load_bundle(config.run_dir / "bundle", runtime.device)
    data = bundle.config.data.model_copy(update={"max_bad_samples": config.data.max_bad_samples})
    bundle.config = bundle.config.model_copy(update={"evaluation": config.evaluation, "data": data})
    return bundle


def _evaluate(config: Config, bundle: bundles.Bundle, ranks: AtOnce) -> dict[str, Any]:
    """What `metrics.json` holds; measured by all ranks, unless it is there."""
    out = config.run_dir / "evaluation"

    def earlier() -> dict[str, Any] | None:
        metrics = _read_json(out / "metrics.json")
        told = tuple(metrics.get(key) for key in ("version", "bundle", "shards", "asked"))
        images = FaceImages(_held_out(config), config.data)
        asked = (VERSION, bundle.trained, images.content_hash, config.evaluation.model_dump(mode="json"))
        return metrics if told == asked else None

    metrics = ranks.on_main(earlier)
    if metrics is not None:
        return metrics
    shards = ranks.together(lambda: _held_out(config))
    return evaluate(bundle, shards, out, run_dir=config.run_dir, ranks=ranks)


def _show(config: Config, bundle: bundles.Bundle, metrics: dict[str, Any]) -> None:
    """The table, a strip of held-out pairs, and where all that was made is."""
    made = {
        "bundle": config.run_dir / "bundle",
        "evaluation": config.run_dir / "evaluation",
        "strip": config.run_dir / "strip.png",
        "TensorBoard": config.run_dir / "tensorboard",
    }
    print(as_table(metrics), flush=True)
    model_card.update(made["bundle"], bundle.config, bundle.trained, made["evaluation"])
    images = FaceImages(_held_out(config), config.data)
    shown = images.first(2 * STRIPS).to(bundle.device).split(1)
    strips = fuse.strips(bundle, list(zip(shown[::2], shown[1::2], strict=False)), STRIP)
    picture_files.save(strips, made["strip"], about(made["bundle"], FALLING.format(STRIP)))
    print("\nMade:" + "".join(f"\n  {what:<12} {path}" for what, path in made.items()), flush=True)


def _trained(folder: Path) -> Any:
    return _read_json(folder / "config.json").get("trained")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
