"""From shards to weights."""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.exit_codes import importing
from pipeline.cli.options import AsJson, ConfigFile, DryRun, Overrides, configuration
from pipeline.common.errors import UserError

WATCH_SECONDS = 1.0
"""Between two looks of `status --watch`."""


def pretrain(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Pre-train encoder and generator as an autoencoder; run again to resume."""
    resolved = configuration(config, overrides, dry_run)
    with importing():
        from pipeline.cli import workflow

    workflow.pretrain(resolved)


def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Checkpoint or run to start from, not to resume; default: this run's pre-training."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Train the fusion from pre-trained weights; run again to resume."""
    resolved = configuration(config, overrides, dry_run)
    if init is not None and not init.exists():
        raise UserError(f"--init {init}: no such checkpoint or run")
    with importing():
        from pipeline.cli import workflow

    workflow.train(resolved, init)


def run(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Every stage in a row: shard, pretrain, train, export, evaluate, fuse. What is done is skipped."""
    resolved = configuration(config, overrides, dry_run)
    with importing():
        from pipeline.cli import workflow

    workflow.run(resolved)


def doctor(
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine for a run, each problem with its fix, and measure how long the run takes here."""
    resolved = configuration(config, overrides)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return  # the first rank of this machine tells
    with importing():
        from pipeline.cli.checks import as_text
        from pipeline.cli.doctor import examine

    checks = examine(resolved)
    print(json.dumps([check.as_dict() for check in checks], indent=2) if as_json else as_text(checks))
    if any(check.fix for check in checks):
        raise typer.Exit(2)


def status(
    run_dir: Annotated[Path, typer.Argument(help="Run folder.")],
    watch: Annotated[bool, typer.Option("--watch", help="Print it whenever it changes, until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """How a job stands: stage, step, speed, time left, newest checkpoint."""
    from pipeline.training.status import as_line, read

    told = read(run_dir)
    while True:
        print(json.dumps(told, indent=2) if as_json else as_line(told), flush=True)
        if not watch or told["state"] != "running":
            return
        before = told
        while told == before:
            time.sleep(WATCH_SECONDS)
            told = read(run_dir)


def fetch(arch: Annotated[Literal["vgg19", "vgg16"], typer.Option()] = "vgg19") -> None:
    """Download the ImageNet weights into torch's cache; do it where there is internet."""
    with importing():
        from pipeline.models.perceptual import fetch_weights

    print(fetch_weights(arch))
