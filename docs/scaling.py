"""The tables of docs/scaling.md from counts of the code and the constants below, in s, B and FLOP; run to rewrite."""

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.cli.bench.flops import per_image
from pipeline.common.numbers import divisors
from pipeline.config.load import load
from pipeline.config.schema import TrackingConfig
from pipeline.data.shards.format import OPEN_SHARDS
from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.models.discriminator import Discriminator
from pipeline.models.perceptual import PerceptualNetwork

DOCUMENT, DEFAULT = Path(__file__).with_suffix(".md"), Path(__file__).parents[1] / "configs" / "default.yaml"
HALF, SINGLE = ("E, G", "D", "frozen D", "VGG"), ("penalty", "Gram")  # parts in fp16; fp32
GPUS, BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256), ((100, 25), (128, 16))  # and the largest micro-batch of each
# V100 SXM2: peaks, and the share of them that convolutions reach (low, assumed, high).
HALF_PEAK, HALF_SHARES = 125e12, (0.10, 0.20, 0.30)
SINGLE_PEAK, SINGLE_SHARES = 15.7e12, (0.35, 0.50, 0.65)
MEMORY_RATE, STATE_PASSES = 900e9 * 0.7, 20  # over 4 bytes per trained parameter: unscale, norm, Adam, average
HOST_CALLS, HOST_CALL = 2700, 5e-6  # ATen calls per micro-batch without the optimizers; host seconds for each
# Bus bandwidth in a node and of one EDR port; latency of a hop; all-reduces, the share of a backward that hides them.
NODE, NVLINK, PORT, NVLINK_HOP, NETWORK_HOP, TCP_HOP = 8, 130e9, 12.5e9 * 0.85, 3e-6, 6e-6, 30e-6
BUCKETS, OVERLAP = 6, 0.5
TAIL = {"D": 11.0e6, "EG": 11.1e6}  # bytes of the last all-reduce, never hidden
# CelebA, 178 x 218: img_align_celeba.zip is 1.44 GB for 202,599 files; a .json with 40 attributes.
JPEG, METADATA, DECODED_PER_CORE, DISK_RATE, HASH_RATE = 7125, 830, 1200.0, 1e9, 0.5e9
SAMPLE = 1024 + (JPEG + 256) + -(-METADATA // 512) * 512  # in a tar: two headers, both padded to 512
IMAGES, SHARD_SIZES, NODES = (2 * 10**5, 2 * 10**6, 2 * 10**7, 10**8, 10**9), (1_000, 10_000), 32
# Bytes per image (keys of nine digits) and per shard, of the real index and manifest.
INDEX_JSON, INDEX_MEMORY, INDEX_PEAK, MANIFEST_ENTRY, SHARD_OBJECTS = 73, 70, 180, 270, 700
PERMUTATION, INDEX_LOAD = 1.7 / 2e7, 0.21 / 1e5  # measured: see the document


class Counts(NamedTuple):
    parameters: dict[str, int]
    flop: dict[str, int]  # per image
    checkpoint: int  # bytes

    def of(self, *parts: str) -> int:
        """FLOP per image of the parts whose names begin so."""
        return sum(flop for name, flop in self.flop.items() if name.startswith(parts))

    def gradients(self, networks: str = "EGD") -> int:
        return 4 * sum(self.parameters[name] for name in networks)


@lru_cache
def count(*overrides: str) -> Counts:
    """From the real modules of configs/default.yaml."""
    config = load(DEFAULT, ["perceptual.weights=random", *overrides])
    with torch._subclasses.FakeTensorMode():  # shapes only
        model, vgg = FusionAutoencoder(config.model), PerceptualNetwork(config.perceptual)
        critic = Discriminator(config.model, config.penalty, config.data.image_size)
    networks = {"E": model.encoder, "G": model.generator, "D": critic, "VGG": vgg}
    saved = [model, critic, vgg.scales, *([model] if config.training.ema_decay else [])]
    size = sum(tensor.nbytes for module in saved for tensor in module.state_dict().values())
    size += sum(2 * p.nbytes + 4 for module in (model, critic) for p in module.parameters())  # Adam's
    parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    return Counts(parameters, per_image(config), size)


def compute(half: float, single: float = 0, level: int = 1) -> float:
    return half / HALF_PEAK / HALF_SHARES[level] + single / SINGLE_PEAK / SINGLE_SHARES[level]


def image_seconds(level: int = 1, mixed: bool = True) -> float:
    half, single = count().of(*HALF), count().of(*SINGLE)
    return compute(half, single, level) if mixed else compute(0, half + single, level)


def latencies(gpus: int) -> tuple[float, float]:
    """Of a step's NCCL all-reduces (rings in nodes, a tree between them), and of the ranks' votes (gloo's ring)."""
    hops = 2 * (min(gpus, NODE) - 1) * NVLINK_HOP + 2 * math.ceil(math.log2(max(gpus / NODE, 1))) * NETWORK_HOP
    return BUCKETS * hops, 2 * (gpus - 1) * TCP_HOP


def reduce_seconds(size: float, gpus: int, ports: int) -> float:
    return 2 * (gpus - 1) / gpus * size / (NVLINK if gpus <= NODE else min(NVLINK, ports * PORT))


def step(gpus: int, micro: int, accumulation: int, ports: int) -> tuple[float, float]:
    """Seconds of a step: working, and waiting for all-reduces that no backward hides."""
    counts, waiting = count(), sum(latencies(gpus))
    again = compute(counts.of("+")) if accumulation > 1 else 0.0
    working = accumulation * max(micro * (image_seconds() + again), HOST_CALLS * HOST_CALL)
    working += STATE_PASSES * counts.gradients() / MEMORY_RATE
    backwards = {"D": compute(counts.of("D: b"), counts.of("penalty: d")), "EG": compute(counts.of("E, G: b"))}
    for networks, backward in backwards.items():
        rest = reduce_seconds(counts.gradients(networks), gpus, ports) - OVERLAP * micro * backward
        waiting += max(rest, reduce_seconds(TAIL[networks], gpus, ports))
    return working, waiting


def run_row(gpus: int, micro: int, accumulation: int) -> list[str]:
    batch, alone = gpus * micro * accumulation, 128 / sum(step(1, 16, 8, 4))
    (working, waiting), (_, longer) = (step(gpus, micro, accumulation, ports) for ports in (4, 1))
    rate, slow = batch / (working + waiting), batch / (working + longer)
    saving = count().checkpoint / DISK_RATE + count().checkpoint / HASH_RATE
    share = saving / (saving + TrackingConfig().checkpoint_every * batch / rate)
    times = [f"{1000 * seconds:.1f}" for seconds in (working, waiting, longer)]
    rates = [f"{rate:,.0f}", f"{rate / alone / gpus:.0%}", f"{slow / alone / gpus:.0%}", f"{rate * JPEG / 1e6:.1f}"]
    rates += [f"{rate / gpus / DECODED_PER_CORE:.2f}", f"{share:.1%}"]
    return [f"{batch}", f"{gpus}", f"{micro} x {accumulation}", *times, *rates]


def amount(value: float, unit: str = "") -> str:
    power = min(4, int(math.log10(value)) // 3) if unit == "B" and value >= 1 else 0
    value, unit = value / 1000**power, unit and f" {'kMGT'[power - 1] if power else ''}{unit}"
    return f"{value:,.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


def data_rows() -> list[list[str]]:
    factors = {"tars": (SAMPLE, "B"), "staging them at 1 GB/s": (SAMPLE / DISK_RATE, "s")}
    factors |= {"index: JSON on disk": (INDEX_JSON, "B"), "index: loading": (INDEX_LOAD, "s")}
    factors |= {"index: per rank": (INDEX_MEMORY, "B"), "index: 8 ranks, while loading": (NODE * INDEX_PEAK, "B")}
    factors |= {"permutation: drawing": (PERMUTATION, "s"), "permutation: two, 8 ranks": (NODE * 16, "B")}
    for size in SHARD_SIZES:
        of = f"tars of {size:,}: "
        factors |= {of + "number": (1 / size, ""), of + f"per node, of {NODES}": (1 / size / NODES, "")}
        factors |= {of + "manifest": (MANIFEST_ENTRY / size, "B"), of + "its memory": (SHARD_OBJECTS / size, "B")}
    rows = [[name, *(amount(factor * n, unit) for n in IMAGES)] for name, (factor, unit) in factors.items()]
    opened = {size: [f"{max(0.0, 1 - OPEN_SHARDS * size / n):.0%}" for n in IMAGES] for size in SHARD_SIZES}
    return rows + [[f"tars of {size:,}: reads that open one", *shares] for size, shares in opened.items()]


def table(head: str, rows: list[list[str]]) -> str:
    lines = [head.split(" | "), ["---"] * (head.count("|") + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables() -> dict[str, str]:
    """Every table of the document, by its name there."""
    counts, speeds, reduced = count(), [], []
    parts = counts.flop | {"a step of one micro-batch": counts.of(*HALF, *SINGLE)}
    sizes = {**{name: 4 * n for name, n in counts.parameters.items()}, "checkpoint": counts.checkpoint}
    for level, name in enumerate(("low", "assumed", "high")):
        mixed, single = image_seconds(level), image_seconds(level, mixed=False)
        speeds.append([name, *map(amount, (1000 * mixed, 1 / mixed, 1000 * single, 1 / single))])
    for gpus in GPUS[1:]:
        rings = [reduce_seconds(counts.gradients(n), gpus, ports) for n in ("D", "EG") for ports in (4, 1)]
        reduced.append([f"{gpus}", *(f"{1000 * x:.2g}" for x in (*rings, *latencies(gpus)))])
    # On every number of GPUs that leaves each 2 images or more: the largest micro-batch up to a limit.
    shares = [(b, g, max(m for m in divisors(b // g) if m <= limit)) for b, limit in BATCHES for g in divisors(b)[:-1]]
    run = "batch | GPUs | micro x acc. | working, ms | waiting, ms: 4 ports | 1 port | images/s: 4 ports"
    run += " | efficiency: 4 ports | 1 port | JPEG, MB/s | cores per GPU | saving"
    return {
        "sizes": table("of | values | fp32", [[name, f"{n // 4:,}", amount(n, "B")] for name, n in sizes.items()]),
        "flop": table("part | GFLOP per image", [[name, f"{flop / 1e9:.2f}"] for name, flop in parts.items()]),
        "speeds": table("share of peak | fp16: ms per image | images/s | fp32: ms per image | images/s", speeds),
        "reduced": table("GPUs | D: 4 ports | 1 port | E + G: 4 ports | 1 port | latencies | votes", reduced),
        "fixed": table(run, [run_row(gpus, micro, batch // gpus // micro) for batch, gpus, micro in shares]),
        "grown": table(run, [run_row(gpus, 16, 1) for gpus in GPUS]),
        "data": table("images | " + " | ".join(f"{n:.0e}" for n in IMAGES), data_rows()),
    }


def filled(document: str) -> str:
    for name, text in tables().items():
        begin, rest = document.split(f"<!-- {name} -->\n")
        document = f"{begin}<!-- {name} -->\n{text}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
