"""From weights to pictures and numbers."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.exit_codes import importing
from pipeline.cli.options import AsJson, Device, open_bundle


def export(
    source: Annotated[Path, typer.Argument(help="Run folder, or one checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder for the bundle.")],
    max_shard_size: Annotated[str, typer.Option(help="Largest weights file, as 500MB.")] = "5GB",
) -> None:
    """Export a checkpoint as a bundle: safetensors, config.json, model card."""
    with importing():
        from pipeline.training.checkpoint import find
        from pipeline.training.export import export_bundle

    found = find(source)
    export_bundle(found, out, max_shard_size)
    print(f"{out}: from {found.path}")


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder that `export` wrote.")],
    shards: Annotated[Path, typer.Argument(help="What `shard` wrote: OUT, or its OUT/test.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, metrics.md and figures.")] = Path("evaluation"),
    train: Annotated[
        Path | None, typer.Option(help="Where the training images are; default: `train` in or beside SHARDS.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder whose TensorBoard shall show it, too.")] = None,
    pairs: Annotated[int | None, typer.Option(min=2, help="Pairs behind the effect matrix.")] = None,
    perceptual_weights: Annotated[
        str | None, typer.Option(help="imagenet, random or a file; default: as in training.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure 200 faces only: a look, not a result.")] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on held-out faces; under a launcher its ranks share the work."""
    with importing():
        from pipeline.data.shards.format import split_folder
        from pipeline.evaluation.report import evaluate as measure
        from pipeline.evaluation.table import as_table
        from pipeline.training.ranks import meeting

    with meeting(device) as (ranks, own):
        opened = ranks.together(lambda: open_bundle(bundle, device, own))
        test = ranks.together(lambda: split_folder(shards, "test"))
        learned = ranks.together(lambda: train and split_folder(train, "train"))
        result = measure(opened, test, out, pairs, perceptual_weights, learned, run, quick, ranks)
    if ranks.rank == 0:
        print(json.dumps(result, indent=2) if as_json else f"{as_table(result)}\n{out}: metrics and figures")


def compare(
    a: Annotated[Path, typer.Argument(help="metrics.json that `evaluate` wrote; per_image.json is beside it.")],
    b: Annotated[Path, typer.Argument(help="The same of another bundle, on the same faces.")],
    more: Annotated[list[Path] | None, typer.Argument(help="Further ones, as of other seeds.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two evaluations: differences with intervals. Of more, such as seeds of a recipe: mean and spread."""
    with importing():
        from pipeline.evaluation import compare as comparing

    if more:
        numbers = comparing.spread([a, b, *more])
        print(json.dumps(numbers, indent=2) if as_json else comparing.as_spread(numbers, [a, b, *more]))
        return
    differences = comparing.compare(a, b)
    print(json.dumps(differences, indent=2) if as_json else comparing.as_table(differences))


def features(
    image: Annotated[Path, typer.Argument(help="Photograph, of any size.")],
    arch: Annotated[str, typer.Option(help="vgg19 or vgg16.")] = "vgg19",
    weights: Annotated[str, typer.Option(help="imagenet, random or a .safetensors file.")] = "imagenet",
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG or JPEG to write.")] = Path("features.png"),
) -> None:
    """Draw what each layer of the perceptual network sees."""
    from pipeline.config import load as config

    perceptual = config.validate({"perceptual": {"arch": arch, "weights": weights}}, "features").perceptual
    with importing():
        from pipeline.evaluation.figures import feature_maps
        from pipeline.inference import picture_files

    picture_files.check_ending(out)
    picture_files.save(feature_maps(image, perceptual), out)
    print(out)
