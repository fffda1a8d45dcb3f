"""The command line, put together. A command imports what it needs once its options are read: `--help` is quick."""

from typing import Annotated

import typer

from pipeline.cli import data, results, training, web
from pipeline.cli.align import align
from pipeline.cli.bench import commands as bench
from pipeline.cli.exit_codes import run_app
from pipeline.cli.fuse import fuse
from pipeline.common.version import VERSION

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(name="latentfuse", no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP)
weights_app = typer.Typer(help="Weights of the perceptual network.", no_args_is_help=True, context_settings=HELP)
bench_app = typer.Typer(
    help="Measure what this machine gives, beside its limit.", no_args_is_help=True, context_settings=HELP
)

DATA, TRAINING, RESULTS, MACHINE = "Data", "Training", "Results", "This machine"
for panel, command, example in (
    (DATA, data.synth, "synth faces --count 2000"),
    (DATA, data.shard, "shard img_align_celeba.zip shards --split official"),
    (DATA, data.verify, "verify shards"),
    (DATA, data.stage, "stage s3://bucket/shards /local/shards"),
    (DATA, align, "align photographs faces"),
    (TRAINING, training.run, "run --config configs/demo.yaml"),
    (TRAINING, training.pretrain, "pretrain --config configs/default.yaml --set data.shards=shards"),
    (TRAINING, training.train, "train --config configs/default.yaml --set data.shards=shards"),
    (TRAINING, training.status, "status runs/default --watch"),
    (RESULTS, results.export, "export runs/default bundle"),
    (RESULTS, results.evaluate, "evaluate bundle shards --out evaluation"),
    (RESULTS, results.compare, "compare one/metrics.json other/metrics.json"),
    (RESULTS, fuse, "fuse bundle a.jpg b.jpg --lambda 0.5 --out fused.png"),
    (RESULTS, results.features, "features a.jpg --arch vgg16 --weights vgg16.safetensors"),
    (RESULTS, web.play, "play bundle"),
    (RESULTS, web.web, "web bundle page"),
    (MACHINE, training.doctor, "doctor --config configs/default.yaml"),
):
    app.command(rich_help_panel=panel, epilog=f"Example: latentfuse {example}", context_settings=HELP)(command)
app.add_typer(weights_app, name="weights", rich_help_panel=MACHINE)
app.add_typer(bench_app, name="bench", rich_help_panel=MACHINE)
for group, measure, example in (
    (weights_app, training.fetch, "weights fetch --arch vgg19"),
    (bench_app, bench.step, "bench step --config configs/demo.yaml"),
    (bench_app, bench.loader, "bench loader shards"),
):
    group.command(epilog=f"Example: latentfuse {example}", context_settings=HELP)(measure)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"latentfuse {VERSION}")
        raise typer.Exit


@app.callback(no_args_is_help=True, context_settings=HELP)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Train element-wise latent fusion of face images: shard, pretrain, train, evaluate, export, fuse."""


def main() -> None:
    """Entry point."""
    run_app(app)
