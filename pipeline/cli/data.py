"""From photographs to shards."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.exit_codes import importing
from pipeline.cli.options import AsJson, Workers
from pipeline.common.errors import UserError, one_line

INDEXING = {"source", "workers", "max_rejected", "index_only", "as_json"}
"""What `shard --index-only` heeds."""


def synth(
    out: Annotated[Path, typer.Argument(help="Folder to fill, in CelebA's layout.")],
    count: Annotated[int, typer.Option(min=1, help="Faces to paint.")] = 2000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Workers = None,
) -> None:
    """Paint faces with known factors, in CelebA's layout."""
    with importing():
        from pipeline.common.processes import default_workers
        from pipeline.data.synth.faces import write_faces

    write_faces(out, count, seed=seed, workers=workers or default_workers())
    print(f"{count} faces in {out}")


def shard(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="img_align_celeba.zip, its folder, or any folder of JPEG, PNG, WebP.")],
    out: Annotated[Path | None, typer.Argument(help="Folder for train/ and test/.")] = None,
    split: Annotated[
        str,
        typer.Option(
            help="paper (the last 2,599 are test), official (CelebA's partition file) or the test fraction; "
            "auto: paper from 20,000 images on, else 0.1."
        ),
    ] = "auto",
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    image_size: Annotated[
        int | None,
        typer.Option(min=16, max=65500, help="Crop, resize to this side, re-encode; default: no change."),
    ] = None,
    crop: Annotated[int | None, typer.Option(min=16, help="Centre crop before resizing; default: the largest.")] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="JPEG quality with --image-size; default: 90.")
    ] = None,
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
        _index(context)
        return
    if out is None:
        raise UserError("shard: name the folder to write to: latentfuse shard SOURCE OUT")
    with importing():
        from pipeline.data.shards.array_jobs import Part
        from pipeline.data.shards.writing import write_shards
        from pipeline.data.source.photographs import listed

    summary = write_shards(
        source, out, split=split, samples_per_shard=samples_per_shard, image_size=image_size, crop=crop,
        quality=quality, workers=workers, max_rejected=max_rejected,
        part=None if part is None else Part.parse(part), finish=finish,
    )  # fmt: skip
    if as_json:
        print(json.dumps(summary.as_dict(), indent=2))
        return
    which = f"part {part} of " if part else ""
    for name, (folder, manifest, new) in summary.splits.items():
        print(f"{which}{name}: {manifest.samples} images in {len(manifest.shards)} shards ({new} new) in {folder}")
    for rejected in summary.rejected:
        print(f"rejected {rejected.file}: {rejected.reason}")
    if summary.ignored:
        print(f"ignored as no images: {listed(summary.ignored)}")


def _index(context: typer.Context) -> None:
    """`shard --index-only`."""
    with importing():
        from pipeline.data.shards.indexing import index_tars

    given = context.params
    source = given["source"]
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in INDEXING and given[name] != parameter.default:
            what = given["out"] if name == "out" else f"--{name.replace('_', '-')}"
            raise UserError(f"--index-only {source}: decodes tars and indexes them as they are; leave out {what}")
    indexed = index_tars(source, workers=given["workers"], max_rejected=given["max_rejected"])
    told = json.dumps({"folder": str(source)} | indexed.summary(), indent=2)
    print(told if given["as_json"] else f"{indexed.samples} images indexed in {source}")


def verify(
    shards: Annotated[list[Path], typer.Argument(help="What `shard` wrote: OUT, or one of its splits.")],
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte of shards; names the shard and key of each damage."""
    with importing():
        from pipeline.data.shards.format import split_folders
        from pipeline.data.shards.verifying import verify as check

    folders = [folder for each in shards for folder in split_folders(each)]
    reports = {str(folder): check(folder, workers=workers) for folder in folders}
    for folder, (manifest, problems) in reports.items():
        for problem in problems:
            print(one_line(f"{folder}: {problem}"), file=sys.stderr)
        if not as_json:
            print(f"{folder}: {manifest.samples} images, {'damaged' if problems else 'intact'}")
    if as_json:
        print(json.dumps({folder: {"folder": folder} | each.as_dict() for folder, each in reports.items()}, indent=2))
    damaged = {folder: report.manifest.kind for folder, report in reports.items() if report.problems}
    if damaged:
        advice = {
            "written": "delete the shards named and run `shard` again (of a copy: run `stage` again)",
            "indexed": "get tars that others wrote from where they came, then run `shard --index-only` again",
        }
        what = "; ".join(advice[kind] for kind in sorted(set(damaged.values())))
        raise UserError(f"damaged: {', '.join(damaged)}; {what}")


def stage(
    source: Annotated[str, typer.Argument(help="Shards: a folder, http://, https://, s3://, or pipe:COMMAND with {}.")],
    destination: Annotated[Path, typer.Argument(help="Folder on this node's own disk.")],
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Copy shards to this node's disk, every file checked against its SHA-256; run again to continue."""
    with importing():
        from pipeline.data.shards.staging import stage as copy

    summary = copy(source, destination, workers=workers)
    if as_json:
        print(json.dumps(summary.as_dict(), indent=2))
        return
    for split in summary.splits:
        print(f"{split.folder}: {split.samples} images in {split.shards} shards ({split.copied} new), intact")
