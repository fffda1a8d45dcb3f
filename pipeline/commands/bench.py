"""What this machine gives, beside its limit."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import AsJson, ConfigFile, Overrides, configuration
from pipeline.console import importing


def step(
    config: ConfigFile = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, after two that do not count.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Time training steps on random images, beside the machine's own matrix rate."""
    resolved = configuration(config, overrides)
    with importing():
        from pipeline.bench import step as training

    report = training.measure(resolved, steps)
    print(json.dumps(report.as_dict(), indent=2) if as_json else training.as_text(report))


def loader(
    shards: Annotated[Path, typer.Argument(help="Split folder, as OUT/train.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, help="Images to read in each of three rounds.")] = 2000,
    as_json: AsJson = False,
) -> None:
    """Time the loader, with data.workers processes, beside the bare decoder and plain webdataset."""
    resolved = configuration(config, overrides)
    with importing():
        from pipeline.bench import loading

    report = loading.measure(shards, resolved.data, images)
    print(json.dumps(report.as_dict(), indent=2) if as_json else loading.as_text(report))
