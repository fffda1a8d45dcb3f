"""`latentfuse fuse`: pictures of fused faces, of one pair of photographs or of many."""

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from pipeline.cli.exit_codes import importing
from pipeline.cli.options import Device, open_bundle
from pipeline.common.errors import UserError, one_line

MOST_TOLD = 10
"""Pairs of a list that are named where they cannot be fused, and where there is something to say of them."""
FALLING = "from 1 to 0 in {} images"


class Asked(NamedTuple):
    """The options that one picture depends on."""

    lambda_: str | None
    preset: str | None
    strip: int | None
    grid: bool
    animate: Path | None
    region: str | None
    mask: Path | None
    landmarks: Path | None
    feather: int | None
    align: str
    paste: bool
    scale: int | None
    columns: int | None

    @property
    def several(self) -> str | None:
        """The option that asks for more than C alone."""
        return "--strip" if self.strip is not None else "--grid" if self.grid else "--animate" if self.animate else None


def fuse(
    bundle: Annotated[Path, typer.Argument(help="Folder that `export` wrote.")],
    a: Annotated[Path | None, typer.Argument(help="Photograph A, of any size.")] = None,
    b: Annotated[Path | None, typer.Argument(help="Photograph B.")] = None,
    lambda_: Annotated[
        str | None, typer.Option("--lambda", help="One number for all elements, or one each: 1,0.5,0,0,1. 1 is A.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="content-style: the content of A in the style of B.")] = None,
    strip: Annotated[int | None, typer.Option(max=1000, help="This many images from A to B, under the inputs.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="One row per element, each moved alone.")] = False,
    animate: Annotated[Path | None, typer.Option(help="Moves from A to B and back: WebP or GIF to write.")] = None,
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
    scale: Annotated[
        int | None, typer.Option(min=1, max=16, help="Enlarge faces so many times; default: to 192 pixels or more.")
    ] = None,
    columns: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Fused images in a row; default: all of a strip, 6 of a grid.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="Fuse each pair of this CSV file: a,b or a,b,lambda.")] = None,
    out_dir: Annotated[Path | None, typer.Option(help="Folder for the pictures of --pairs.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG or JPEG to write; default: fused.png.")] = None,
    device: Device = "cpu",
) -> None:
    """Fuse two photographs, or many pairs."""
    asked = Asked(lambda_, preset, strip, grid, animate, region, mask, landmarks, feather, align, paste, scale, columns)
    _check_picture(asked)
    _check_region(asked)
    _check_files(asked, (a, b), pairs, out_dir, out)
    if pairs is not None and out_dir is not None:
        _fuse_many(bundle, pairs, out_dir, asked, device)
    elif a is not None and b is not None:
        _fuse_one(bundle, (a, b), out or Path("fused.png"), asked, device)


def _check_picture(asked: Asked) -> None:
    chosen = (asked.lambda_, asked.preset, asked.strip, asked.grid or None, asked.animate)
    if sum(each is not None for each in chosen) > 1:
        raise UserError(
            "fuse: --lambda, --preset, --strip, --grid and --animate are different pictures; give one of them"
        )
    if asked.paste and asked.several:
        raise UserError(f"fuse: --paste puts one face into photograph A; leave out {asked.several}")
    if asked.paste and asked.scale is not None:
        raise UserError(f"fuse: --scale {asked.scale}: --paste keeps the size of photograph A; leave out one of them")
    if asked.columns is not None and asked.several not in ("--strip", "--grid"):
        raise UserError(f"fuse: --columns {asked.columns}: is for --strip and --grid, and none is given")


def _check_region(asked: Asked) -> None:
    if asked.region is not None and asked.mask is not None:
        raise UserError("fuse: --region and --mask both say where to fuse; give one of them")
    somewhere = asked.region is not None or asked.mask is not None
    if asked.grid and somewhere:
        raise UserError("fuse: --grid shows whole pictures; use --strip or --lambda within a region")
    if asked.landmarks is not None and asked.region is None:
        raise UserError(f"fuse: --landmarks {asked.landmarks}: they place a --region, and none is given")
    if asked.feather is not None and not somewhere:
        raise UserError(f"fuse: --feather {asked.feather}: softens the edge of a --region or --mask, and none is given")


def _check_files(
    asked: Asked, photographs: tuple[Path | None, ...], pairs: Path | None, out_dir: Path | None, out: Path | None
) -> None:
    if pairs is None and None in photographs:
        raise UserError("Missing argument: photographs A and B, or --pairs FILE (see latentfuse fuse --help)")
    if (pairs is None) != (out_dir is None):
        raise UserError("fuse: --pairs FILE and --out-dir FOLDER belong together; give both")
    if out is not None and asked.animate is not None:
        raise UserError(f"fuse: --animate {asked.animate} is what is written; leave out --out {out}")
    if pairs is None:
        return
    of_one_pair = {"A": photographs[0], "--out": out, "--animate": asked.animate, "--landmarks": asked.landmarks}
    for name, given in of_one_pair.items():
        if given is not None:
            raise UserError(f"fuse: {name} {given}: is for one pair; leave it out, or --pairs {pairs}")
    if out_dir is not None and out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"--out-dir {out_dir}: is no folder")


def _fuse_one(folder: Path, photographs: tuple[Path, Path], out: Path, asked: Asked, device: str) -> None:
    with importing():
        from pipeline.inference import fuse as fusing
        from pipeline.inference import picture_files

    if asked.animate is None:
        picture_files.check_ending(out)
    else:
        picture_files.check_ending(asked.animate, picture_files.MOVING)
    bundle = open_bundle(folder, device)
    framed, where, notices = _prepared(bundle, photographs, asked)
    if asked.animate is None:
        picture, lambda_ = _drawn(bundle, framed, where, asked, *_elements_and_lambda(folder, bundle, asked))
        picture_files.save(picture, out, about(folder, lambda_))
    else:
        a, b, out = framed[0].image, framed[1].image, asked.animate
        picture_files.save_moving(fusing.moving(bundle, a, b, where, _least(bundle, asked)), out)
    for notice in notices:
        print(one_line(f"fuse: {notice}"), file=sys.stderr)
    print(out)


def _fuse_many(folder: Path, listed: Path, out_dir: Path, asked: Asked, device: str) -> None:
    """A picture of each pair of a list; those that cannot be fused are told, and the others fused all the same."""
    with importing():
        from pipeline.common.progress import progress
        from pipeline.inference import pair_list, picture_files

    bundle = open_bundle(folder, device)
    pairs = pair_list.read_pairs(listed, bundle.elements)
    given = next((pair for pair in pairs if pair.lambda_ is not None), None)
    if given and asked.several:
        raise UserError(f"{given.where}: has a lambda, of which {asked.several} shows all; leave out one of them")
    elements, lambda_ = _elements_and_lambda(folder, bundle, asked)
    said: Counter[str] = Counter()
    for pair in progress(pairs, "fuse", len(pairs), "pairs"):
        try:
            framed, where, notices = _prepared(bundle, (pair.a, pair.b), asked)
            own = lambda_ if pair.lambda_ is None else pair.lambda_
            picture, text = _drawn(bundle, framed, where, asked, elements, own)
        except UserError as problem:
            _say("failed", f"{pair.where}: {problem}", said)
            continue
        picture_files.save(picture, out_dir / f"{pair.name}.png", about(folder, text))
        for notice in notices:
            _say("notices", f"{pair.where}: {notice}", said)
    if said["notices"] > MOST_TOLD:
        print(f"fuse: and {said['notices'] - MOST_TOLD} more lines of this kind", file=sys.stderr)
    if failed := said["failed"]:
        others = f"; the others are in {out_dir}" if failed < len(pairs) else ""
        raise UserError(f"{listed}: {failed} of {len(pairs)} pairs could not be fused{others}")
    print(f"{out_dir}: {len(pairs)} pictures")


def _say(kind: str, line: str, said: Counter[str]) -> None:
    """Print a line, unless many of its kind were said already."""
    said[kind] += 1
    if said[kind] <= MOST_TOLD:
        print(one_line(f"fuse: {line}"), file=sys.stderr)


def _elements_and_lambda(folder: Path, bundle: Any, asked: Asked) -> tuple[Any, float | list[float]]:
    """What the bundle's elements are called, and the lambda of C where it is drawn alone."""
    from pipeline.inference import fuse as fusing
    from pipeline.inference.described import described_elements

    if asked.preset is not None:
        lambda_: float | list[float] = fusing.preset(asked.preset, bundle)
    elif asked.lambda_ is not None:
        lambda_ = fusing.parse_lambda(asked.lambda_, bundle.elements)
    else:
        lambda_ = 0.5 if asked.region is None and asked.mask is None else 0.0  # all of B inside of a region
    return described_elements(folder, bundle.config.model), lambda_


def _prepared(bundle: Any, photographs: tuple[Path, Path], asked: Asked) -> tuple[list[Any], Any, list[str]]:
    """A and B as the bundle takes them, where B enters, and what the user should know of them."""
    from pipeline.inference import align as aligning
    from pipeline.inference import detector
    from pipeline.inference import fuse as fusing

    find = asked.align == "auto" and detector.installed()
    a, b = (
        aligning.framed(bundle, path, find, marks)
        for path, marks in zip(photographs, (asked.landmarks, None), strict=True)
    )
    where = None
    if asked.region is not None:
        where = fusing.named_region(bundle, asked.region, photographs[0], asked.landmarks, asked.feather, a.points)
    elif asked.mask is not None:
        move = a.move if a.points else None
        where = fusing.masked_region(bundle, asked.mask, photographs[0], asked.feather, move)
    notices = [each.notice for each in (a, b) if each.notice]
    if where is not None and where.assumed:
        place = f"--region {asked.region} is where CelebA's alignment has it; --landmarks FILE places it"
        notices.insert(0, f"{photographs[0]} has no landmarks: {place}")
    return [a, b], where, list(dict.fromkeys(notices))


def _drawn(
    bundle: Any, framed: list[Any], where: Any, asked: Asked, elements: Any, lambda_: float | list[float]
) -> tuple[Any, str]:
    """The picture, and what lambdas it shows."""
    from pipeline.inference import fuse as fusing

    a, b, least = framed[0].image, framed[1].image, _least(bundle, asked)
    if asked.strip is not None:
        strip = fusing.strips(bundle, [(a, b)], asked.strip, where, asked.columns, least)
        return strip, FALLING.format(asked.strip)
    if asked.grid:
        count = asked.columns or fusing.GRID_COLUMNS
        picture = fusing.grid(bundle, a, b, count, elements, least)
        return picture, f"of one element after the other {FALLING.format(count)}"
    text = ",".join(f"{value:g}" for value in (lambda_ if isinstance(lambda_, list) else [lambda_]))
    fused = fusing.single(bundle, a, b, lambda_, where, 1 if asked.paste else least)
    return fusing.pasted(bundle, fused, framed[0], where) if asked.paste else fused, text


def _least(bundle: Any, asked: Asked) -> int:
    """Pixels that a face has at least."""
    from pipeline.inference.pictures import LEAST

    return LEAST if asked.scale is None else asked.scale * int(bundle.image_size)


def about(folder: Path, lambda_: str) -> dict[str, str]:
    """What a PNG says of itself: by what program, command and bundle it was made, and what lambda it shows."""
    from pipeline.common.version import VERSION
    from pipeline.inference.described import bundle_hash

    command = one_line(shlex.join(["latentfuse", *sys.argv[1:]]))
    made_by = {"Software": f"latentfuse {VERSION}", "bundle": bundle_hash(folder), "command": command}
    return made_by | {"lambda": lambda_}
