"""The command line. Each command reads its configuration first, then imports what it needs: `--help` is quick."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.console import importing, run_app
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Config

app = typer.Typer(
    name="latentfuse",
    help="Train element-wise latent fusion of face images: shard, pretrain, train, evaluate, export, fuse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
weights_app = typer.Typer(help="Weights of the perceptual network.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
bench_app = typer.Typer(help="Measure what this machine gives, beside its limit.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file; without it, the built-in defaults.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override; repeat it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: every processor.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


def main() -> None:
    """Entry point."""
    run_app(app)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to fill, in CelebA's layout.")],
    count: Annotated[int, typer.Option(min=1, help="Faces to paint.")] = 2000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Workers = None,
) -> None:
    """Paint faces with known factors, in CelebA's layout."""
    with importing():
        from pipeline.data.pool import default_workers
        from pipeline.data.synth import write_faces

    write_faces(out, count, seed=seed, workers=workers or default_workers())
    print(f"{count} faces in {out}")


@app.command()
def shard(
    source: Annotated[Path, typer.Argument(help="img_align_celeba.zip, its folder, or any folder of JPEG or PNG.")],
    out: Annotated[Path | None, typer.Argument(help="Folder for train/ and test/.")] = None,
    split: Annotated[str, typer.Option(help="paper (last 2,599 are test), official, or the test fraction.")] = "paper",
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    image_size: Annotated[
        int | None, typer.Option(min=16, help="Crop, resize to this side and re-encode; default: bytes as they are.")
    ] = None,
    crop: Annotated[int | None, typer.Option(min=16, help="Centre crop before resizing; default: the largest.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality with --image-size.")] = 90,
    workers: Workers = None,
    max_rejected: Annotated[int, typer.Option(min=0, help="Unusable pictures to tolerate.")] = 0,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Write this share of the shards only; --finish comes last.")
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="Complete what all parts have written.")] = False,
    index_only: Annotated[bool, typer.Option("--index-only", help="SOURCE holds WebDataset tars: index them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write photographs as WebDataset shards; run again to continue."""
    if part is not None and finish:
        raise UserError(f"--part {part} and --finish: run every part first, then --finish alone")
    if index_only:
        with importing():
            from pipeline.data.indexing import index_tars

        if part is not None or finish:
            raise UserError(f"--index-only {source}: goes with neither --part nor --finish; leave that out")
        if out is not None:
            raise UserError(f"--index-only {source}: writes beside the tars; leave out {out}")
        indexed = index_tars(source, workers=workers, max_rejected=max_rejected)
        print(json.dumps(indexed.as_dict(), indent=2) if as_json else f"{indexed.samples} images indexed in {source}")
        return
    if out is None:
        raise UserError("shard: name the folder to write to: latentfuse shard SOURCE OUT")
    with importing():
        from pipeline.data.parts import Part
        from pipeline.data.writing import write_shards

    summary = write_shards(
        source, out, split=split, samples_per_shard=samples_per_shard, image_size=image_size, crop=crop,
        quality=quality, workers=workers, max_rejected=max_rejected,
        part=None if part is None else Part.parse(part), finish=finish,
    )  # fmt: skip
    if as_json:
        print(json.dumps(summary.as_dict(), indent=2))
        return
    which = f"part {part} of " if part else ""
    for name, made in summary.splits.items():
        print(f"{which}{name}: {made.samples} images in {made.shards} shards ({made.written} new) in {made.folder}")
    for rejected in summary.rejected:
        print(f"rejected {rejected.file}: {rejected.reason}")


@app.command()
def verify(
    shards: Annotated[list[Path], typer.Argument(help="Split folders, as OUT/train OUT/test.")],
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte of shards; names the shard and key of each damage."""
    with importing():
        from pipeline.data.verifying import verify as check

    reports = {str(folder): check(folder, workers=workers) for folder in shards}
    if as_json:
        print(json.dumps({folder: report.as_dict() for folder, report in reports.items()}, indent=2))
    for folder, report in reports.items():
        for problem in report.problems:
            print(f"{folder}: {problem}", file=sys.stderr)
        if not as_json:
            print(f"{folder}: {report.samples} images, {'damaged' if report.problems else 'intact'}")
    damaged = [folder for folder, report in reports.items() if report.problems]
    if damaged:
        raise UserError(f"damaged: {', '.join(damaged)}; delete the shards named and run `shard` again")


@app.command()
def stage(
    source: Annotated[str, typer.Argument(help="Shards: a folder, http://, https://, s3://, or pipe:COMMAND with {}.")],
    destination: Annotated[Path, typer.Argument(help="Folder on this node's own disk.")],
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Copy shards to this node's disk, every file checked against its SHA-256; run again to continue."""
    with importing():
        from pipeline.data.staging import stage as copy

    summary = copy(source, destination, workers=workers)
    if as_json:
        print(json.dumps(summary.as_dict(), indent=2))
        return
    for split in summary.splits:
        print(f"{split.folder}: {split.samples} images in {split.shards} shards ({split.copied} new), intact")


@app.command()
def pretrain(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Pre-train encoder and generator as an autoencoder; run again to resume."""
    resolved = _configuration(config, overrides, dry_run)
    with importing():
        from pipeline import workflow

    workflow.pretrain(resolved)


@app.command()
def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    init: Annotated[
        Path | None, typer.Option(help="Checkpoint or run to start from; default: this run's pre-training.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Train the fusion from pre-trained weights; run again to resume."""
    resolved = _configuration(config, overrides, dry_run)
    with importing():
        from pipeline import workflow

    workflow.train(resolved, init)


@app.command()
def run(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Every stage in a row: shard, pretrain, train, export, evaluate, fuse. What is done is skipped."""
    resolved = _configuration(config, overrides, dry_run)
    with importing():
        from pipeline import workflow

    workflow.run(resolved)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Run folder, or one checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder for the bundle.")],
    max_shard_size: Annotated[str, typer.Option(help="Largest weights file, as 500MB.")] = "5GB",
) -> None:
    """Export a checkpoint as a bundle: safetensors, config.json, model card."""
    with importing():
        from pipeline.bundle import export_bundle
        from pipeline.training.checkpoint import find

    found = find(source)
    export_bundle(found, out, max_shard_size)
    print(f"{out}: from {found.path}")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder that `export` wrote.")],
    shards: Annotated[Path, typer.Argument(help="Split folder, as OUT/test.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, metrics.md and figures.")] = Path("evaluation"),
    pairs: Annotated[int | None, typer.Option(min=2, help="Pairs behind the effect matrix.")] = None,
    perceptual_weights: Annotated[
        str | None, typer.Option(help="imagenet, random or a file; default: as in training.")
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on held-out faces."""
    with importing():
        from pipeline.evaluation.report import as_table
        from pipeline.evaluation.report import evaluate as measure

    result = measure(_bundle(bundle, device), shards, out, pairs, perceptual_weights)
    print(json.dumps(result, indent=2) if as_json else f"{as_table(result)}\n{out}: metrics and figures")


@app.command()
def fuse(
    bundle: Annotated[Path, typer.Argument(help="Folder that `export` wrote.")],
    a: Annotated[Path, typer.Argument(help="Photograph A, of any size.")],
    b: Annotated[Path, typer.Argument(help="Photograph B.")],
    lambda_: Annotated[
        str | None, typer.Option("--lambda", help="One number for all elements, or one each: 1,0.5,0,0,1. 1 is A.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="content-style: the content of A in the style of B.")] = None,
    strip: Annotated[int | None, typer.Option(help="This many images from A to B, under the inputs.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="One row per element, each moved alone.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("fused.png"),
    device: Device = "cpu",
) -> None:
    """Fuse two photographs."""
    if sum((lambda_ is not None, preset is not None, strip is not None, grid)) > 1:
        raise UserError("fuse: --lambda, --preset, --strip and --grid are four different pictures; give one of them")
    with importing():
        from pipeline import fuse as fusing

    opened = _bundle(bundle, device)
    images = opened.load_image(a), opened.load_image(b)
    if strip is not None:
        picture = fusing.strip(opened, *images, strip)
    elif grid:
        picture = fusing.grid(opened, *images, 6)
    elif preset is not None:
        picture = fusing.single(opened, *images, fusing.preset(preset, opened))
    else:
        picture = fusing.single(opened, *images, fusing.parse_lambda("0.5" if lambda_ is None else lambda_))
    fusing.save(picture, out)
    print(out)


@app.command()
def doctor(
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine for a run: versions, devices, disk, shards, perceptual weights; each problem with its fix."""
    resolved = _configuration(config, overrides, dry_run=False)
    with importing():
        from pipeline.doctor import as_text, examine

    checks = examine(resolved)
    print(json.dumps([check.as_dict() for check in checks], indent=2) if as_json else as_text(checks))
    if any(check.fix for check in checks):
        raise typer.Exit(2)


@bench_app.command("step")
def bench_step(
    config: ConfigFile = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, after two that do not count.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Time training steps on random images, beside the machine's own matrix rate."""
    resolved = _configuration(config, overrides, dry_run=False)
    with importing():
        from pipeline.bench import step

    report = step.measure(resolved, steps)
    print(json.dumps(report.as_dict(), indent=2) if as_json else step.as_text(report))


@bench_app.command("loader")
def bench_loader(
    shards: Annotated[Path, typer.Argument(help="Split folder, as OUT/train.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, help="Images to read in each of three rounds.")] = 2000,
    as_json: AsJson = False,
) -> None:
    """Time the loader, with data.workers processes, beside the bare decoder and plain webdataset."""
    resolved = _configuration(config, overrides, dry_run=False)
    with importing():
        from pipeline.bench import loading

    report = loading.measure(shards, resolved.data, images)
    print(json.dumps(report.as_dict(), indent=2) if as_json else loading.as_text(report))


@weights_app.command()
def fetch(arch: Annotated[Literal["vgg19", "vgg16"], typer.Option()] = "vgg19") -> None:
    """Download the ImageNet weights into torch's cache; do it where there is internet."""
    with importing():
        from pipeline.models.perceptual import fetch_weights

    print(fetch_weights(arch))


def _configuration(path: Path | None, overrides: list[str] | None, dry_run: bool) -> "Config":
    from pipeline import config

    try:
        resolved = config.load(path, overrides)
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise SystemExit(2) from None  # the first rank of this machine says it
        raise
    if dry_run:
        print(config.dump(resolved), end="")
        raise typer.Exit
    return resolved


def _bundle(path: Path, device: str) -> Any:
    with importing():
        from pipeline.bundle import load_bundle
        from pipeline.training.runtime import check_device

    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: cpu or cuda")
    check_device(device, "no")
    return load_bundle(path, device)
