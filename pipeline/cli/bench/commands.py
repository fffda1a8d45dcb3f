"""`latentfuse bench`: what this machine reaches, beside its limit."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.exit_codes import importing
from pipeline.cli.options import AsJson, ConfigFile, Overrides, configuration
from pipeline.common.files import write_json


def step(
    config: ConfigFile = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, after two that do not count.")] = 5,
    profile: Annotated[bool, typer.Option("--profile", help="Name the ten heaviest operations.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write besides.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time training steps on random images, beside the rate of this machine's matrix products."""
    resolved = configuration(config, overrides)
    with importing():
        from pipeline.cli.bench import step as training

    context = training.without_data(resolved)
    report = training.measure(context, steps, profile)
    context.runtime.close()
    if report is None:
        return
    if out is not None:
        write_json(out, report.as_dict())
    print(json.dumps(report.as_dict(), indent=2) if as_json else training.as_text(report))


def loader(
    shards: Annotated[Path, typer.Argument(help="What `shard` wrote: OUT, or one of its splits.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, help="Images to read in each of five rounds.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Time the loader beside the bare decoder and plain webdataset."""
    resolved = configuration(config, overrides)
    with importing():
        from pipeline.cli.bench import loading
        from pipeline.data.shards.format import split_folder

    report = loading.measure(split_folder(shards, "train"), resolved.data, images)
    print(json.dumps(report, indent=2) if as_json else loading.as_text(report))
