"""Faults of one line at core places, one at a time: names those that no test notices.

    python benchmarks/mutants.py              all of them: an hour or so
    python benchmarks/mutants.py --check      whether the lines are still there, no more
    python benchmarks/mutants.py average crc  those whose description holds one of the words

Each is made in a copy of the repository, never in the working tree. Exits with 1 if a fault goes unnoticed and is not
explained, or if a line has changed: then bring the list below up to date.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COPIED = ("pipeline", "tests", "configs", "docs", "launch", "benchmarks", ".ci", "Makefile", "pyproject.toml")
MOST_SECONDS = 1800
"""Tests that take longer hang: the fault is noticed."""


@dataclass(frozen=True)
class Mutant:
    what: str
    room: str
    """Folder of `pipeline/` in one of whose files the line is."""
    old: str
    """A line or a part of it, found once in the room."""
    new: str
    tests: str = ""
    """Space between several; those of the room if empty."""
    explained: str = ""
    """Why no test can notice it, if none can."""


MUTANTS = (
    # The order of the data and of all draws
    Mutant("one permutation for all epochs", "data/loading", "generator(seed, Stream.ORDER, epoch)", "generator(seed, Stream.ORDER, 0)"),
    Mutant("position of a step in the epoch", "data/loading", "positions = step * self.global_batch_size +", "positions = step +"),
    Mutant("slices of the ranks", "data/loading", "first = self.rank * self.accumulation", "first = self.rank"),
    Mutant("the seed of a draw", "data/loading", "np.random.SeedSequence((seed, int(stream), step))", "np.random.SeedSequence((seed, int(stream)))"),
    Mutant("mirrored images", "data/loading", "generator(self.seed, Stream.FLIP, step)", "generator(self.seed, Stream.FLIP, 0)"),
    # Images and shards
    Mutant("normalisation", "data", ".to(torch.get_default_dtype()) / 127.5 - 1", ".to(torch.get_default_dtype()) / 128 - 1"),
    Mutant("landmarks in a crop", "data", "(offset + 0.5) * self.scale - 0.5", "offset * self.scale", "tests/inference/test_landmarks.py"),
    Mutant("sizes of the splits", "data/source", "test = max(1, round(fraction * images))", "test = max(1, int(fraction * images))", "tests/data/shards/test_writing.py"),
    Mutant("which images are for testing", "data/source", '{"train": records[:-test], "test": records[-test:]}', '{"train": records[test:], "test": records[:test]}', "tests/data/shards/test_writing.py"),
    Mutant("entries of a zip that swallow others", "data/source", "if _ENTRY in member.extra or _ENTRY in member.comment:", "if False:", "tests/hostile/test_hostile_zips.py"),
    Mutant("CRC of an image that is written", "data/shards", "length, zlib.crc32(image.data),", "length, zlib.crc32(metadata),"),
    Mutant("CRC of an image that is read", "data/shards", "if zlib.crc32(data) != crc32:", "if False:"),
    Mutant("SHA-256 of an index", "data/shards", "if entry is not None and hashlib.sha256(content)", "if entry is None and hashlib.sha256(content)"),
    Mutant("a job of an array writes the manifests", "data/shards", "            if not part:\n", "            if True:\n"),
    # Files and signals
    Mutant("flush before the rename", "common", "            if flush:\n                fsync(temporary)", "            pass", "tests/common tests/data/shards tests/training"),
    Mutant("flush of the folder", "common", "    if flush:\n        fsync(path.parent)", "    pass", "tests/common tests/data/shards tests/training"),
    Mutant("exit code of a preemption", "common", "REQUEUE = 75", "REQUEUE = 74", "tests/common"),
    Mutant("exit code of Ctrl-C", "common", "130 if number == signal.SIGINT else self.REQUEUE", "self.REQUEUE", "tests/common"),
    # Lambda and the losses
    Mutant("mixing by lambda", "models", "weighted_sum((z_a, z_b), (weight, 1 - weight))", "weighted_sum((z_b, z_a), (weight, 1 - weight))"),
    Mutant("the norm of a mix", "models", "(wanted.mean(dim=(2, 3), keepdim=True) / norm(inner))", "(norm(inner) / norm(inner))"),
    Mutant("the latents' mean", "models", "(half.mean(dim=0) for half in inner.tensor_split(2))", "(half.mean() for half in inner.tensor_split(2))"),
    Mutant("latents as D sees them: their scale", "models", "part / scale for part, scale", "part for part, scale"),
    Mutant("noise on elements 4 and 5", "models", "inner + norm(inner) * of_element", "inner + of_element"),
    Mutant("channels of the last element", "models", "(channels - size * (elements - 1),)", "(size,)"),
    Mutant("reconstruction: sum for mean", "models", "return (wide(output) - wide(target)).abs().mean(dim=(1, 2, 3))", "return (wide(output) - wide(target)).abs().sum(dim=(1, 2, 3))"),
    Mutant("adversarial: sign", "models", "return -wide(scores_fake)", "return wide(scores_fake)"),
    Mutant("critic: sign", "models", "return wide(scores_fake) - wide(scores_real)", "return wide(scores_real) - wide(scores_fake)"),
    Mutant("penalty: exponent", "models", ".sum(dim=1).pow(p / 2)", ".sum(dim=1).pow(p)"),
    Mutant("Gram matrix: its divisor", "models", "return products / (channels * flat.shape[2])", "return products / flat.shape[2]"),
    Mutant("content: A and B", "models", "return (lambda_ * to_a + (1 - lambda_) * to_b).mean(dim=(1, 2))", "return ((1 - lambda_) * to_a + lambda_ * to_b).mean(dim=(1, 2))"),
    Mutant("style: A and B", "models", "    return lambda_ * to_a + (1 - lambda_) * to_b", "    return (1 - lambda_) * to_a + lambda_ * to_b"),
    Mutant("total variation: its divisor", "models", "return (across + down) / images[0].numel()", "return across + down"),
    Mutant("weights of the terms", "models", "weights[name] * term.mean()", "term.mean()"),
    Mutant("bands of the pyramid: contrast of the detail", "models", "(1 + of_detail) * bands", "bands"),
    Mutant("mask of a region", "models", "(down >= -box.up * unit)", "(down >= box.up * unit)"),
    # Training
    Mutant("the moving average's count of steps", "training", "self.average.update(config.training.pretrain_steps + step + 1)", "self.average.update(step + 1)"),
    Mutant("decay of the moving average", "training", "min(self.decay, (1 + step) / (10 + step))", "self.decay"),
    Mutant("penalty every n-th step: its weight", "training", "(critic + every * penalty.mean())", "(critic + penalty.mean())"),
    Mutant("mean over micro-batches", "training", "backward(total / len(micros))", "backward(total)"),
    Mutant("reconstruction counts twice", "training", "2 * to_a + _endpoint_term", "to_a + _endpoint_term"),
    Mutant("endpoints of lambda", "training", "(flat == 1).all(1) * to_a + (flat == 0)", "(flat == 0).all(1) * to_a + (flat == 1)"),
    Mutant("what E minimises of latents: sign", "training", "return -losses.adversarial_critic(", "return losses.adversarial_critic("),
    Mutant("noise: each image has its own", "training", "Stream.NOISE, first + index)", "Stream.NOISE, first)"),
    Mutant("resuming: the optimizers", "training", "        optimizer.load_state_dict({\"state\": moments, ", "        ({\"state\": moments, "),
    Mutant("resuming: the step", "training", "    return found.step", "    return 0"),
    Mutant("a gradient that is not finite", "training", "elif attempt.finite:", "elif True:"),
    Mutant("how often a step may be skipped", "training", "0 if finite else self._skipped_in_a_row[attempt.what] + 1", "self._skipped_in_a_row[attempt.what] + (not finite)"),
    Mutant("SHA-256 of a checkpoint", "training", "if files.sha256(path / name) != sums[name]:", "if False:"),
    Mutant("checkpoints that are kept", "training", "<= step][:-keep]", "<= step][keep:]"),
    Mutant("the ranks' votes", "training", "distributed.all_gather_object(told, mine, group=self._group)", "told[self.rank] = mine", "tests/integration/test_preemption.py"),
    # Measures and evaluation
    Mutant("an evaluation's shares", "evaluation", "items[ranks.rank :: ranks.world_size]", "items[ranks.rank :: ranks.world_size][::-1]"),
    Mutant("detectability: which side is mixed", "evaluation", "np.searchsorted(ordered, of_mixed), np", "np.searchsorted(ordered, of_faces), np"),
    Mutant("ghost: the share of A", "measures", "exposure = share * back_a + (1 - share) * back_b", "exposure = (back_a + back_b) / 2"),
    Mutant("a morph's middle", "evaluation", "Triangulation(*((corners_a + corners_b) / 2).T)", "Triangulation(*corners_a.T)"),
    Mutant("effect of an element", "measures", "one_flipped = 1 - torch.eye(elements)", "one_flipped = torch.eye(elements)"),
    Mutant("own share", "measures", "of_layer = squares / squares.sum(axis=-2, keepdims=True)", "of_layer = squares / squares.sum(axis=-1, keepdims=True)"),
    Mutant("bootstrap of pairs: blocks", "evaluation", "round(rows ** (1 / 3)) if pairs else 1", "1"),
    Mutant("interval: its level", "evaluation", "tail = 50 * (1 - LEVEL)", "tail = 100 * (1 - LEVEL)"),
    Mutant("FID: too few images", "evaluation", "if min(len(some), len(others)) <= some.shape[1]:", "if False:"),
    Mutant("Shapley: weights of the orders", "evaluation", "math.factorial(players - size - 1) / math.factorial(players)", "1 / math.factorial(players)"),
)  # fmt: skip


class OutOfDate(Exception):
    """A line of the list is not in the code."""


def find(mutant: Mutant, root: Path) -> Path:
    """The file that holds the line. Raises OutOfDate unless it is there once."""
    files = sorted((root / "pipeline" / mutant.room).rglob("*.py"))
    counts = {path: count for path in files if (count := path.read_text(encoding="utf-8").count(mutant.old))}
    if sum(counts.values()) != 1:
        raise OutOfDate(f"{mutant.what}: {sum(counts.values())} times in pipeline/{mutant.room}: {mutant.old!r}")
    return next(iter(counts))


def run_tests(root: Path, tests: Iterable[str]) -> str:
    """The tests that fail, on one line; empty if none does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not faults and not gpu", *tests]
    variables = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {MOST_SECONDS} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (0, 1) or bool(failed) != bool(done.returncode):  # a broken run has noticed nothing
        raise SystemExit(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return failed[0] if failed else ""


def tests_of(mutant: Mutant) -> tuple[str, ...]:
    return tuple((mutant.tests or f"tests/{mutant.room}").split())


def copy(root: Path) -> Path:
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            root.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, root / name)
    return root


def notice(mutant: Mutant) -> str:
    """What notices the fault; empty if nothing does."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = copy(Path(folder) / "latentfuse")
        path = find(mutant, root)
        path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        return run_tests(root, tests_of(mutant))


def check_without_faults(tests: Iterable[str]) -> None:
    """Exits where tests fail without any fault: they would notice everything."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        if failed := run_tests(copy(Path(folder) / "latentfuse"), tests):
            raise SystemExit(f"without a fault: {failed}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="run those whose description or room holds one of these words")
    parser.add_argument("--check", action="store_true", help="only look whether each line is there")
    options = parser.parse_args()
    words = [word.lower() for word in options.words]
    chosen = [m for m in MUTANTS if not words or any(word in f"{m.room} {m.what}".lower() for word in words)]
    bad = 0
    for mutant in list(chosen):
        try:
            find(mutant, REPOSITORY)
        except OutOfDate as error:
            print(f"out of date  {error}", flush=True)
            chosen.remove(mutant)
            bad += 1
    if options.check:
        return int(bad > 0)
    check_without_faults(dict.fromkeys(test for mutant in chosen for test in tests_of(mutant)))
    for mutant in chosen:
        noticed = notice(mutant)
        told = noticed or mutant.explained
        bad += not told
        mark = "noticed" if noticed else "explained" if told else "UNNOTICED"
        print(f"{mark:<11}  {mutant.room}: {mutant.what}: {told or mutant.new}", flush=True)
    print(f"{len(chosen)} faults, {bad} of them out of date or unnoticed", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
