"""Configurations and overrides: too deep, too large, of the wrong types, and texts that are no YAML."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st
from trying import FEW_AND_MANY, answered, answered_in_little_memory, changes, many, refused

from pipeline.config.schema import Config

LAUGHS = "\n".join(
    ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha]"]
    + [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 8)}]" for n in range(1, 12)]
)
YAMLS: dict[str, str | bytes] = {
    "aliases that grow": f"{LAUGHS}\nseed: *l11\n",
    "aliases of an alias": "data: &d {workers: *d}\n",
    "wide aliases": f"seed: &s [{'0,' * 4000}]\nrun_dir: [{'*s, ' * 4000}]\n",
    "lists of a thousand levels": f"seed: {'[' * 1000}{']' * 1000}\n",
    "lists of a hundred thousand levels": "seed: " + "[" * 100_000,
    "sections of thirty levels": "".join(f"{' ' * n}a:\n" for n in range(30)),
    "many keys": "".join(f"k{n}: 1\n" for n in range(30_000)),
    "a key twice": "seed: 1\nseed: 2\n",
    "digits": f"seed: {'9' * 5000}\n",
    "hexadecimal digits": f"seed: 0x{'f' * 20_000}\n",
    "base 60": f"seed: 1{':1' * 20_000}\n",
    "tags": "seed: !!python/object/apply:os.system [id]\n",
    "an empty number": "seed: !!int ''\n",
    "no truth": "data: {horizontal_flip: !!bool maybe}\n",
    "no time": "seed: !!timestamp soon\n",
    "before all time": "seed: 0001-01-01T00:00:00+23:59\n",
    "bytes": "run_dir: !!binary gA==\n",
    "no key": "? [1, 2]\n: 3\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "a NUL": 'run_dir: "a\\0b"\n',
    "half a character": 'run_dir: "\\ud800"\n',
    "a list": "[1, 2]\n",
    "a number for a section": "data: 5\n",
    "numbers for keys": "1: 2\n",
    "true for a number": "seed: true\n",
    "true among numbers": "perceptual: {layer_weights: [true, 1, 1, 1, 1]}\n",
    "a batch of billions": "training: {global_batch_size: 10000000019}\n",
    "a billion workers": "data: {workers: 1000000000}\n",
    "not UTF-8": b"seed: \xff\n",
    "megabytes": b"#" * 2**22,
}


@pytest.mark.parametrize("kind", YAMLS)
@pytest.mark.parametrize("command", ["train", pytest.param("doctor", marks=pytest.mark.faults)])
def test_a_file(tmp_path: Path, kind: str, command: str) -> None:
    path, text = tmp_path / "a.yaml", YAMLS[kind]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = refused(tmp_path, command, "--config", path)
    assert str(path) in result.errors


OVERRIDES = (
    "seed=true",
    f"seed={'[' * 1000}{']' * 1000}",
    f"seed={'{a: ' * 1000}1{'}' * 1000}",
    f"{'a.' * 1000}a=1",
    f"seed{'.a' * 1000}=1",
    f"seed=0x{'f' * 20_000}",
    "seed=!!int ''",
    'run_dir="a\\0b"',
    "run_dir=a\udcffb",
    "seed=&a [*a]",
    "seed=[&a [1, 2], *a]",
    f"seed={'9' * 100_000}",
    f"data.{'x' * 50_000}=1",
    "training.global_batch_size=10000000019",
    "a\nb=1",
    "seed=\x1b[2J",
)


@pytest.mark.parametrize("override", OVERRIDES, ids=range(len(OVERRIDES)))
def test_an_override_is_named(tmp_path: Path, override: str) -> None:
    (tmp_path / "a.yaml").write_text("training: {fusion_steps: 3}\n")
    result = refused(tmp_path, "train", "--config", tmp_path / "a.yaml", "--set", "data.workers=0", "--set", override)
    assert result.errors.startswith(f"latentfuse: --set {override[:4]}".split("\n")[0]), result.errors
    assert len(result.errors) < 2000 and "a.yaml" not in result.errors


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_anything_in_the_place_of_anything(tmp_path: Path, count: int) -> None:
    def try_one(changed: Any) -> None:
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(changed))
        answered(tmp_path, "train", "--config", tmp_path / "a.yaml", "--dry-run")

    many(changes(Config().as_dict()), 5 * count, try_one)


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_any_text(tmp_path: Path, count: int) -> None:
    parts = st.sampled_from(
        ["seed", "data", ": ", ":", "\n", "  ", "- ", "[", "]", "{", "}", "&a", "*a", "!!", "? ", "<<"]
    )

    def try_one(text: str) -> None:
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8", errors="replace")
        answered(tmp_path, "train", "--config", tmp_path / "a.yaml", "--dry-run")

    many(st.lists(parts | st.text(max_size=5), max_size=20).map("".join), 5 * count, try_one)


@pytest.mark.faults
@pytest.mark.parametrize("kind", [kind for kind, text in YAMLS.items() if len(text) > 500])
def test_memory_and_time(tmp_path: Path, kind: str) -> None:
    path, text = tmp_path / "in" / "a.yaml", YAMLS[kind]
    path.parent.mkdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert answered_in_little_memory(path.parent, "train", "--config", path).code == 2
