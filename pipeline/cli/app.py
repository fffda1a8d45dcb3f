"""The command line, put together. A command imports what it needs once its options are read: `--help` is quick."""

import typer

from pipeline.cli import data, results, training, web
from pipeline.cli.bench import commands as bench
from pipeline.cli.exit_codes import run_app

app = typer.Typer(
    name="latentfuse",
    help="Train element-wise latent fusion of face images: shard, pretrain, train, evaluate, export, fuse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    *(data.synth, data.shard, data.verify, data.stage),
    *(training.pretrain, training.train, training.run),
    *(results.export, results.evaluate, results.compare, results.fuse, results.features),
    *(web.web, web.play),
    training.doctor,
):
    app.command()(command)

weights_app = typer.Typer(help="Weights of the perceptual network.", no_args_is_help=True)
weights_app.command()(training.fetch)
app.add_typer(weights_app, name="weights")

bench_app = typer.Typer(help="Measure what this machine gives, beside its limit.", no_args_is_help=True)
for measure in (bench.step, bench.loader, bench.shard):
    bench_app.command()(measure)
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Entry point."""
    run_app(app)
