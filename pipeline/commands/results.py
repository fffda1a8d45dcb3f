"""From weights to pictures and numbers."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import AsJson, Device, open_bundle
from pipeline.console import importing
from pipeline.errors import UserError


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

    result = measure(open_bundle(bundle, device), shards, out, pairs, perceptual_weights)
    print(json.dumps(result, indent=2) if as_json else f"{as_table(result)}\n{out}: metrics and figures")


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

    opened = open_bundle(bundle, device)
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
