"""Options that several commands share, and what they mean."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.exit_codes import importing
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.schema import Config

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file; without it, the built-in defaults.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override; repeat it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: every processor.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


def configuration(path: Path | None, overrides: list[str] | None, dry_run: bool = False) -> "Config":
    """The configuration of a file and its overrides; with `dry_run` printed, and that is all."""
    from pipeline.config import load as config

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


def open_bundle(path: Path, device: str) -> Any:
    """The bundle in a folder, on cpu or cuda."""
    with importing():
        from pipeline.common.devices import check_device
        from pipeline.inference.bundle import load_bundle

    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: cpu or cuda")
    check_device(device, "no")
    return load_bundle(path, device)
