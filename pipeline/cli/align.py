"""Photographs of one's own, brought to the layout and alignment of CelebA."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.exit_codes import importing
from pipeline.cli.options import AsJson, Workers
from pipeline.common.errors import UserError


def align(
    photographs: Annotated[Path, typer.Argument(help="Folder or zip of photographs: JPEG, PNG, WebP.")],
    out: Annotated[Path | None, typer.Argument(help="Folder to fill, in CelebA's layout.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every face of a photograph; default: the largest.")] = False,
    landmarks_only: Annotated[
        bool, typer.Option("--landmarks-only", help="Find landmarks, for `shard`; the pictures stay as they are.")
    ] = False,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Cut faces out of photographs, upright and at one place, as CelebA's are (extra `align`)."""
    if landmarks_only and (every or out is not None):
        what = "--all" if every else str(out)
        raise UserError(f"--landmarks-only {photographs}: one face each, written beside them; leave out {what}")
    if out is None and not landmarks_only:
        raise UserError("align: name the folder to write to: latentfuse align PHOTOS OUT")
    with importing():
        from pipeline.inference import align_photographs as aligning

    if out is None:
        summary = aligning.write_landmarks(photographs, workers)
    else:
        summary = aligning.align(photographs, out, every, workers)
    for name, problem in summary.problems.items():
        print(f"align: {name}: {problem}", file=sys.stderr)
    if as_json:
        print(json.dumps(summary.as_dict(), indent=2))
        return
    without = f"; {len(summary.problems)} without" if summary.problems else ""
    print(f"{summary.faces} faces of {summary.photographs} photographs in {summary.written}{without}")
