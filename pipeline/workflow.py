"""The stages as a user runs them, and all of them in a row. They hand on to each other through files only."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling

from pipeline import bundle as bundles
from pipeline import fuse
from pipeline.config import Config
from pipeline.data.loader import FaceImages
from pipeline.data.shards import load_manifest
from pipeline.errors import UserError
from pipeline.evaluation.report import as_table, evaluate
from pipeline.training import checkpoint, loop
from pipeline.training.fusion import FusionStage
from pipeline.training.pretrain import PretrainStage
from pipeline.training.runtime import Runtime

STRIPS, SHOWN_SIDE = 4, 128
"""Held-out pairs in the strip that `run` ends with, and the side in pixels to which small images are enlarged."""
PAINTED = "synth"
"""The value of `data.source` that stands for painted faces."""


def pretrain(config: Config) -> None:
    """Pre-train E and G, or go on with it."""
    runtime = Runtime(config.training)
    with checkpoint.claimed(config.run_dir, runtime.is_main):
        _pretrain(config, runtime)
    runtime.close()


def train(config: Config, pretrained: Path | None) -> None:
    """Train the fusion, or go on with it, from a checkpoint of pre-training (None: this run's own)."""
    runtime = Runtime(config.training)
    with checkpoint.claimed(config.run_dir, runtime.is_main):
        _train(config, runtime, pretrained)
    runtime.close()


def run(config: Config) -> None:
    """Every stage in a row; what is done is skipped. Ends with the paths of what it made.

    Raises:
        UserError: if a stage cannot go on.
    """
    runtime = Runtime(config.training)
    with checkpoint.claimed(config.run_dir, runtime.is_main):
        if runtime.is_main:
            _prepare_data(config)
        runtime.wait()
        _pretrain(config, runtime)
        _train(config, runtime, None)
        if runtime.is_main:
            made = _finish(config, runtime.device)
            print("\nMade:" + "".join(f"\n  {what:<12} {path}" for what, path in made.items()), flush=True)
        runtime.wait()
    runtime.close()


def _pretrain(config: Config, runtime: Runtime) -> None:
    setup = _setup(config, runtime)
    loop.run(PretrainStage(setup), setup)


def _train(config: Config, runtime: Runtime, pretrained: Path | None) -> None:
    setup = _setup(config, runtime)
    loop.run(FusionStage(setup, pretrained or loop.checkpoint_folder(config, "pretrain").parent), setup)


def _setup(config: Config, runtime: Runtime) -> loop.Setup:
    train = FaceImages(config.shards_dir / "train", config.data)
    held_out = FaceImages(_held_out(config), config.data)
    if len(train) < 2:
        raise UserError(f"{train.reader.folder}: {len(train)} image; training fuses pairs and needs at least 2")
    torch.manual_seed(config.seed)  # the initial weights, alike on every rank; nothing later draws from it
    return loop.Setup(config, runtime, train, held_out, train.reader.index.manifest.content_hash)


def _held_out(config: Config) -> Path:
    """The split that is shown and measured: `test`, or `train` where `test` does not hold a pair."""
    test, train = config.shards_dir / "test", config.shards_dir / "train"
    return test if test.exists() and load_manifest(test).samples >= 2 else train


def _prepare_data(config: Config) -> None:
    folder = config.shards_dir
    if config.data.source is None:
        load_manifest(folder / "train")  # says what to do if it is not there
        return
    source = Path(config.data.source)
    from pipeline.data.writing import write_shards

    if config.data.source == PAINTED:
        from pipeline.data.pool import default_workers
        from pipeline.data.synth import write_faces

        source = config.run_dir / "faces"
        write_faces(source, config.data.synth_count, seed=config.seed, workers=default_workers())
    written = write_shards(source, folder, split=config.data.split, max_rejected=config.data.max_rejected)
    print(f"shard: {written.samples} images in {folder}, {written.written} shards new", flush=True)


def _finish(config: Config, device: torch.device) -> dict[str, Path]:
    """Export, evaluate, fuse; returns what was made."""
    made = {
        "bundle": config.run_dir / "bundle",
        "evaluation": config.run_dir / "evaluation",
        "strip": config.run_dir / "strip.png",
        "TensorBoard": config.run_dir / "tensorboard",
    }
    found = checkpoint.find(loop.checkpoint_folder(config, "train"))
    if _trained(made["bundle"]) != bundles.provenance(found):
        bundles.export_bundle(found, made["bundle"])
        print(f"export: {made['bundle']}", flush=True)
    bundle = bundles.load_bundle(made["bundle"], device)
    images = FaceImages(_held_out(config), config.data)
    metrics = _read_json(made["evaluation"] / "metrics.json")
    seen = images.reader.index.manifest.content_hash
    if (metrics.get("bundle"), metrics.get("shards")) != (bundle.trained, seen):
        metrics = evaluate(bundle, images.reader.folder, made["evaluation"])
    print(as_table(metrics), flush=True)
    shown = images.load(list(range(min(2 * STRIPS, len(images))))).to(device).split(1)
    strips = fuse.strips(bundle, list(zip(shown[::2], shown[1::2], strict=False)), 6)
    enlarged = max(1, SHOWN_SIDE // bundle.image_size)
    fuse.save(strips.resize((strips.width * enlarged, strips.height * enlarged), Resampling.NEAREST), made["strip"])
    return made


def _trained(folder: Path) -> Any:
    return _read_json(folder / "config.json").get("trained")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
