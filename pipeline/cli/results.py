"""From weights to pictures and numbers."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.cli.exit_codes import importing
from pipeline.cli.options import AsJson, Device, open_bundle
from pipeline.common.errors import UserError, one_line


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
    shards: Annotated[Path, typer.Argument(help="Split folder, as OUT/test.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, metrics.md and figures.")] = Path("evaluation"),
    train: Annotated[
        Path | None, typer.Option(help="Split folder of the training images; default: `train` beside SHARDS.")
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
        from pipeline.evaluation.report import evaluate as measure
        from pipeline.evaluation.table import as_table
        from pipeline.training.ranks import meeting

    with meeting(device) as (ranks, own):
        opened = ranks.together(lambda: open_bundle(bundle, device, own))
        result = measure(opened, shards, out, pairs, perceptual_weights, train, run, quick, ranks)
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
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("features.png"),
) -> None:
    """Draw what each layer of the perceptual network sees."""
    from pipeline.config import load as config

    perceptual = config.validate({"perceptual": {"arch": arch, "weights": weights}}, "features").perceptual
    with importing():
        from pipeline.evaluation.figures import feature_maps
        from pipeline.inference import fuse as fusing

    fusing.save(feature_maps(image, perceptual), out)
    print(out)


def fuse(
    bundle: Annotated[Path, typer.Argument(help="Folder that `export` wrote.")],
    a: Annotated[Path, typer.Argument(help="Photograph A, of any size.")],
    b: Annotated[Path, typer.Argument(help="Photograph B.")],
    lambda_: Annotated[
        str | None, typer.Option("--lambda", help="One number for all elements, or one each: 1,0.5,0,0,1. 1 is A.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="content-style: the content of A in the style of B.")] = None,
    strip: Annotated[int | None, typer.Option(max=1000, help="This many images from A to B, under the inputs.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="One row per element, each moved alone.")] = False,
    region: Annotated[
        str | None, typer.Option(help="Fuse eyes, nose, mouth, hair, or the picture's left or right half alone.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Or what is white in this picture.")] = None,
    landmarks: Annotated[
        Path | None, typer.Option(help="JSON with A's landmarks; default: beside A, else CelebA's usual ones.")
    ] = None,
    feather: Annotated[
        int | None, typer.Option(min=0, max=4096, help="Pixels over which the region fades into an unchanged A'.")
    ] = None,
    align: Annotated[
        Literal["auto", "no"], typer.Option(help="auto: find the faces and set them straight, with the extra `align`.")
    ] = "auto",
    paste: Annotated[bool, typer.Option("--paste", help="Put the fused face back into photograph A.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("fused.png"),
    device: Device = "cpu",
) -> None:
    """Fuse two photographs."""
    if sum((lambda_ is not None, preset is not None, strip is not None, grid)) > 1:
        raise UserError("fuse: --lambda, --preset, --strip and --grid are four different pictures; give one of them")
    _check_paste(paste, strip is not None or grid)
    _check_region(region, mask, landmarks, feather, grid)
    with importing():
        from pipeline.inference import fuse as fusing

    opened = open_bundle(bundle, device)
    framed = _framed(opened, (a, b), align, landmarks)
    images = framed[0].image, framed[1].image
    where = None
    if region is not None:
        where = fusing.named_region(opened, region, a, landmarks, feather, framed[0].points)
    elif mask is not None:
        where = fusing.masked_region(opened, mask, a, feather, framed[0].move if framed[0].points else None)
    if strip is not None:
        picture = fusing.strips(opened, [images], strip, where)
    elif grid:
        picture = fusing.grid(opened, *images, 6)
    elif preset is not None:
        picture = fusing.single(opened, *images, fusing.preset(preset, opened), where)
    else:
        default = "0" if where else "0.5"  # all of B inside of a region
        picture = fusing.single(opened, *images, fusing.parse_lambda(default if lambda_ is None else lambda_), where)
    if paste:
        picture = fusing.pasted(opened, picture, framed[0], where)
    notices = [each.notice for each in framed]
    if where is not None and where.assumed:
        place = f"--region {region} is where CelebA's alignment has it; --landmarks FILE places it"
        notices.insert(0, f"{a} has no landmarks: {place}")
    _save_fused(picture, out, notices)


def _check_paste(paste: bool, several: bool) -> None:
    if paste and several:
        raise UserError("fuse: --paste puts one face into photograph A; leave out --strip or --grid")


def _framed(bundle: Any, photographs: tuple[Path, Path], align: str, landmarks: Path | None) -> list[Any]:
    """A and B as the bundle takes them."""
    with importing():
        from pipeline.inference import align as aligning
        from pipeline.inference import detector

    find = align == "auto" and detector.installed()
    given = (landmarks, None)
    return [aligning.framed(bundle, path, find, marks) for path, marks in zip(photographs, given, strict=True)]


def _save_fused(picture: Any, out: Path, notices: list[str | None]) -> None:
    """Write it, and say what the user should know of the photographs."""
    from pipeline.inference import fuse as fusing

    fusing.save(picture, out)
    for notice in filter(None, dict.fromkeys(notices)):
        print(one_line(f"fuse: {notice}"), file=sys.stderr)
    print(out)


def _check_region(
    region: str | None, mask: Path | None, landmarks: Path | None, feather: int | None, grid: bool
) -> None:
    if region is not None and mask is not None:
        raise UserError("fuse: --region and --mask both say where to fuse; give one of them")
    somewhere = region is not None or mask is not None
    if grid and somewhere:
        raise UserError("fuse: --grid shows whole pictures; use --strip or --lambda within a region")
    if landmarks is not None and region is None:
        raise UserError(f"fuse: --landmarks {landmarks}: they place a --region, and none is given")
    if feather is not None and not somewhere:
        raise UserError(f"fuse: --feather {feather}: softens the edge of a --region or --mask, and none is given")
