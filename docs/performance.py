"""The plots of docs/performance.md: measures this machine, ten minutes on two cores.

python docs/performance.py SHARDS    (a split folder, as shards/train)
"""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).with_suffix("")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 250, 40, 45, 50
COLOURS = ("#1b6ca8", "#c8553d", "#4c956c")

Line = dict[float, float]


def bench(*arguments: str, ranks: int = 1, threads: int = 2) -> dict[str, float]:
    """Seconds per step and tensor memory of fusion training, the better of two tries."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    options = [option for each in arguments for option in ("--set", each)]
    out = FOLDER / "one.json"
    command = [
        sys.executable,
        *launcher,
        "-m",
        "pipeline",
        "bench",
        "step",
        "--steps",
        "2",
        "--out",
        str(out),
        *options,
    ]
    best: dict[str, float] = {}
    for _ in range(2):
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=True)
        speed = json.loads(out.read_text())["speeds"][1]
        if not best or speed["seconds_per_step"] < best["seconds"]:
            best = {"seconds": speed["seconds_per_step"], "GiB": speed["peak_memory_bytes"] / 2**30}
    out.unlink()
    return best


def step(size: int, batch: int, micro: int | None = None, ranks: int = 1, threads: int = 2) -> dict[str, float]:
    batches = (f"training.global_batch_size={batch}", f"training.micro_batch_size={micro or batch}")
    return bench("training.device=cpu", f"data.image_size={size}", *batches, ranks=ranks, threads=threads)


def loader(shards: str, workers: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "bench",
        "loader",
        shards,
        "--json",
        "--set",
        f"data.workers={workers}",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def plot(name: str, title: str, across: str, lines: dict[str, Line]) -> None:
    """An SVG of lines from 0; each point with its value."""
    xs = sorted({x for line in lines.values() for x in line})
    top = max(value for line in lines.values() for value in line.values()) * 1.15
    place = {x: LEFT + 20 + i * (WIDTH - LEFT - 60) / max(1, len(xs) - 1) for i, x in enumerate(xs)}

    def height(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top

    parts = [f'<text x="{WIDTH / 2}" y="18" text-anchor="middle" font-weight="bold">{title}</text>']
    parts.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - 10}" stroke="#888" fill="none"/>')
    parts += [f'<text x="{place[x]:.0f}" y="{HEIGHT - 28}" text-anchor="middle">{x:g}</text>' for x in xs]
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{across}</text>')
    for number, (label, line) in enumerate(lines.items()):
        colour = COLOURS[number]
        points = " ".join(f"{place[x]:.0f},{height(line[x]):.0f}" for x in sorted(line))
        parts.append(f'<polyline points="{points}" stroke="{colour}" stroke-width="2" fill="none"/>')
        for x, value in line.items():
            parts.append(f'<circle cx="{place[x]:.0f}" cy="{height(value):.0f}" r="3" fill="{colour}"/>')
            below = 14 if number else -7
            spot = f'x="{place[x]:.0f}" y="{height(value) + below:.0f}"'
            parts.append(f'<text {spot} text-anchor="middle" fill="{colour}">{value:.3g}</text>')
        parts.append(f'<text x="{LEFT + 150 * number}" y="36" fill="{colour}">{label}</text>')
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif"'
    content = "\n".join(parts)
    (FOLDER / f"{name}.svg").write_text(
        f'{frame} font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{content}\n</svg>\n'
    )


def measure(shards: str) -> dict[str, dict[int, dict[str, float]]]:
    batches = {batch: step(64, batch) for batch in (4, 8, 16)}
    return {
        "batches": batches,
        "processes": {batch: step(64, batch, batch // 2, ranks=2, threads=1) for batch in (8, 16)},
        "loaders": {workers: loader(shards, workers) for workers in (0, 1, 2)},
        "sizes": {size: step(size, 4) for size in (64, 128, 256)},
    }


def draw(measured: dict[str, dict[str, dict[str, float]]]) -> None:
    def line(part: str, key: str, only: tuple[str, ...] = ()) -> Line:
        return {float(x): row[key] for x, row in measured[part].items() if not only or x in only}

    plot("size", "seconds per step, batch 4", "image size", {"float32": line("sizes", "seconds")})
    per_image = {batch: seconds / batch for batch, seconds in line("batches", "seconds").items()}
    plot("batch", "seconds per image, 64 px", "batch", {"float32": per_image})
    plot("memory", "GiB of tensors at the peak, 64 px", "batch", {"float32": line("batches", "GiB")})
    rates = {"loader": line("loaders", "loader"), "webdataset + Pillow": line("loaders", "webdataset")}
    plot("loader", "images/s, 128 px", "data.workers", rates)
    both = {
        "1 process, 2 threads": line("batches", "seconds", ("8", "16")),
        "2 x 1 (DDP)": line("processes", "seconds"),
    }
    plot("ddp", "seconds per step, 64 px", "global batch", both)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    numbers = FOLDER / "measured.json"
    if sys.argv[1:]:
        numbers.write_text(json.dumps(measure(sys.argv[1]), indent=2) + "\n")
    draw(json.loads(numbers.read_text()))  # without SHARDS: what was measured before
