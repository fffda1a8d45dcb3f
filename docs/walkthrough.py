"""docs/walkthrough.md, recorded: `python docs/walkthrough.py > docs/walkthrough.md` runs every command it shows.

Minutes on two CPU cores. `--short` trains a few steps on a few faces instead, to test that all of it works.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
HEAD = """# A first session, recorded

What somebody sees who trains on painted faces, stops the training, goes on with it, and fuses two faces. Every command
was run, and every line is its output, on one or two cores (`python docs/walkthrough.py > docs/walkthrough.md`). `...`
stands for lines left out. `demo.yaml` is `configs/demo.yaml`. For photographs of your own put their folder, or CelebA's
zip, in place of `faces`, and `configs/default.yaml` in place of `demo.yaml`.
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MOST_LINES = 28
PICTURE = "first-session.jpg"


class Step(NamedTuple):
    """A command, and what is said before it."""

    text: str
    command: str
    code: int = 0
    stop_at: str = ""
    """It gets SIGTERM, as from SLURM, once a line begins with this."""


def session(faces: int, stop_at: str) -> Iterator[Step]:
    """The commands, on so many faces; the first training is stopped at the line that begins with `stop_at`."""
    options = "--config demo.yaml --set data.shards=shards --set run_dir=first"
    yield Step("Faces to train on, here painted ones:", f"latentfuse synth faces --count {faces}")
    yield Step(
        "As shards, which plain `webdataset` reads, too:", "latentfuse shard faces shards --split 0.1 --image-size 64"
    )
    yield Step("Is every byte as it was written?", "latentfuse verify shards")
    yield Step("Does this machine fit the run, and how long will that take?", f"latentfuse doctor {options}")
    yield Step(
        "Pre-training. Here it gets SIGTERM on the way, as from SLURM before the time limit. It saves, and ends with\n"
        "75, which tells a scheduler to queue it again:",
        f"latentfuse pretrain {options}",
        75,
        stop_at,
    )
    yield Step("How does it stand?", "latentfuse status first")
    yield Step("The same command goes on:", f"latentfuse pretrain {options}")
    yield Step("A typo costs one line:", f"latentfuse train {options} --set trainig.fusion_steps=900", 2)
    yield Step("The fusion:", f"latentfuse train {options}")
    yield Step("The trained weights, as safetensors:", "latentfuse export first bundle")
    yield Step("How good is it, on faces that it has not seen?", "latentfuse evaluate bundle shards --out evaluation")
    pair = "faces/img_align_celeba/000001.jpg faces/img_align_celeba/000002.jpg"
    yield Step("Two faces, and six steps between them:", f"latentfuse fuse bundle {pair} --strip 6 --out strip.jpg")


def recorded(step: Step, folder: Path) -> str:
    """Run a command in `folder`: it and its output as Markdown.

    Raises:
        SystemExit: it ended with another code than it should.
    """
    words = shlex.split(step.command)
    program = [sys.executable, "-m", "pipeline", *words[1:]]
    environment = os.environ | {"COLUMNS": "110", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        program, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(ESCAPES.sub("", line.rstrip()).replace(f"{folder}/", "").replace(str(folder), "."))
        if step.stop_at and line.startswith(step.stop_at):
            process.send_signal(signal.SIGTERM)
    code = process.wait()
    if code != step.code:
        sys.exit("\n".join([*lines, f"`{step.command}` ended with {code}, not {step.code}"]))
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES // 2], "...", *lines[-MOST_LINES // 2 :]]
    ended = [f"(exit code {code})"] if code else []
    text = f"{step.text}\n\n" if step.text else ""
    return f"{text}```console\n$ {step.command}\n" + "\n".join([*lines, *ended]) + "\n```"


def main() -> None:
    """Record the session in a folder that is thrown away, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    config = yaml.safe_load(CONFIG.read_text())
    if short:
        config["training"] |= {"pretrain_steps": 6, "fusion_steps": 4}
        config["tracking"] |= {"log_every": 1}
        config["evaluation"] |= {"half_way_pairs": 8, "train_images": 8, "classifier_faces": 16}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / CONFIG.name).write_text(yaml.safe_dump(config))
        print(HEAD)
        for step in session(60, "pretrain 2/") if short else session(2000, "pretrain 1000/"):
            print(recorded(step, folder) + "\n", flush=True)
        if not short:
            shutil.copyfile(folder / "strip.jpg", CONFIG.parent.parent / "docs" / "images" / PICTURE)
            print(f"![Two painted faces, and six steps between them](images/{PICTURE})")


if __name__ == "__main__":
    main()
