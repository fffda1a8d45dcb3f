"""The plots of docs/performance.md.

    python benchmarks/performance/plots.py [SHARDS]

With SHARDS, a split folder as shards/train, this machine is measured first: ten minutes on two quiet cores. Without,
the plots are drawn from measured.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

MEASURED = Path(__file__).with_name("measured.json")
PLOTS = Path(__file__).parents[2] / "docs" / "performance" / "growth.svg"

Rows = dict[str, dict[str, float]]
"""Of one experiment: x, as JSON's text -> what was measured there."""


def step(size: int, batch: int, micro: int, ranks: int = 1, threads: int = 2) -> dict[str, float]:
    """Seconds per step and tensor memory of fusion training, the better of two tries."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "pipeline", "bench", "step", "--steps=2"]
    for setting in (
        "training.device=cpu",
        f"data.image_size={size}",
        f"training.global_batch_size={batch}",
        f"training.micro_batch_size={micro}",
    ):
        command += ["--set", setting]
    tries = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.json"
        for _ in range(2):
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run([*command, "--out", str(out)], env=environment, check=True)
            tries.append(json.loads(out.read_text())["speeds"][1])
    best = min(tries, key=lambda speed: float(speed["seconds_per_step"]))
    return {"seconds": best["seconds_per_step"], "GiB": best["peak_memory_bytes"] / 2**30}


def loader(shards: str, workers: int) -> dict[str, float]:
    """Images per second, by the names of `latentfuse bench loader --json`."""
    command = [sys.executable, "-m", "pipeline", "bench", "loader", shards, "--json"]
    command += ["--set", f"data.workers={workers}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rates: dict[str, float] = json.loads(done.stdout)
    return {name: rates[name] for name in ("decoder", "loader", "webdataset")}


def measure(shards: str) -> dict[str, Rows]:
    return {
        "sizes": {str(size): step(size, 4, 4) for size in (64, 128, 256)},
        "batches": {str(batch): step(64, batch, batch) for batch in (4, 8, 16)},
        "processes": {str(batch): step(64, batch, batch // 2, ranks=2, threads=1) for batch in (8, 16)},
        "loaders": {str(workers): loader(shards, workers) for workers in (0, 1, 2)},
    }


def draw(measured: dict[str, Rows]) -> None:
    """One panel for each question."""
    sizes, batches, processes, loaders = (measured[name] for name in ("sizes", "batches", "processes", "loaders"))
    per_image = {batch: {"seconds": row["seconds"] / int(batch)} for batch, row in batches.items()}
    both = {batch: batches[batch] for batch in processes}
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "latentfuse", "font.size": 8})
    figure, panels = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    plot(panels[0, 0], "seconds per step, batch 4", "image size", {"": (sizes, "seconds")})
    plot(panels[0, 1], "seconds per image, 64 px", "batch", {"": (per_image, "seconds")})
    plot(panels[0, 2], "GiB of tensors at the peak, 64 px", "batch", {"": (batches, "GiB")})
    rates = {"loader": (loaders, "loader"), "webdataset with Pillow": (loaders, "webdataset")}
    plot(panels[1, 0], "images/s, 128 px", "data.workers", rates)
    ranks = {"1 process, 2 threads": (both, "seconds"), "2 processes, 1 thread each": (processes, "seconds")}
    plot(panels[1, 1], "seconds per step, 64 px", "global batch", ranks)
    panels[1, 2].axis("off")
    figure.savefig(PLOTS, metadata={"Date": None})


def plot(panel: Axes, title: str, across: str, lines: dict[str, tuple[Rows, str]]) -> None:
    """Lines from 0, each point with its value."""
    for label, (rows, key) in lines.items():
        values = [row[key] for row in rows.values()]
        panel.plot(list(rows), values, marker="o", label=label)
        for x, value in zip(rows, values, strict=True):
            text = f"{value:.3g}" if value < 100 else f"{value:,.0f}"
            panel.annotate(text, (x, value), xytext=(0, 5), textcoords="offset points", ha="center")
    panel.set(title=title, xlabel=across)
    panel.margins(x=0.15)
    panel.set_ylim(0, 1.15 * panel.get_ylim()[1])
    if "" not in lines:
        panel.legend(loc="upper left")


if __name__ == "__main__":
    if sys.argv[1:]:
        MEASURED.write_text(json.dumps(measure(sys.argv[1]), indent=2) + "\n")
    draw(json.loads(MEASURED.read_text()))
