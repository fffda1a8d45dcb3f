"""What `compare` reads: metrics and rows that are damaged, incomplete, or of other sizes than they say."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trying import FEW_AND_MANY, answered, answered_in_little_memory, changes, cuts, many, refused

ROWS: dict[str, dict[str, Any]] = {
    "reconstruction": {"L1": [0.1, 0.2, 0.3], "MSE": [0.2, 0.1, 0.4]},
    "half_way": {"detour": [1.0, 1.5]},
    "effects": {"moved": np.full((2, 5, 5), 0.5).tolist(), "whole": np.ones((2, 5)).tolist()},
    "pose.half_way": {"inside": np.ones((2, 4)).tolist(), "detour": np.ones((2, 4)).tolist()},
}
RESULT: dict[str, Any] = {
    **{"version": 3, "latentfuse": "0.1.0", "shards": "a", "train_shards": None, "image_size": 32, "crop": None},
    **{"perceptual": "vgg19", "seed": 0, "realism": {"net": "x", "count": 2, "FID_fused": 1.5}, "factors": {"a": 0.5}},
}


def write(folder: Path, result: Any = RESULT, rows: Any = ROWS) -> Path:
    """Both files, which agree."""
    folder.mkdir(exist_ok=True)
    text = rows if isinstance(rows, str) else json.dumps(rows)
    (folder / "per_image.json").write_text(text)
    digest = hashlib.sha256((folder / "per_image.json").read_bytes()).hexdigest()
    if isinstance(result, dict):
        result = {"per_image": digest} | result
    (folder / "metrics.json").write_text(result if isinstance(result, str) else json.dumps(result))
    return folder / "metrics.json"


def test_what_is_spoilt_below_is_whole(tmp_path: Path) -> None:
    a = write(tmp_path / "a")
    assert answered(tmp_path, "compare", a, a).code == 0


METRICS: dict[str, Any] = {
    "a list": [],
    "nothing": "",
    "half of it": json.dumps(RESULT)[:50],
    "a thousand levels": "[" * 1000 + "]" * 1000,
    "levels within it": RESULT | {"realism": {"a": json.loads("[" * 200 + "]" * 200)}},
    "not a number": json.dumps(RESULT | {"factors": {"a": float("nan")}}),
    "digits": json.dumps(RESULT | {"factors": {"a": 10**400}}),
    "a list for realism": RESULT | {"realism": [1]},
    "no factors": {key: value for key, value in RESULT.items() if key != "factors"},
    "a text for the seed": RESULT | {"seed": "0"},
    "a negative seed": RESULT | {"seed": -1},
    "a huge seed": RESULT | {"seed": 10**30},
    "a digest that is none": RESULT | {"per_image": 5},
    "a name twice": '{"seed": 0, "seed": 1}',
}


@pytest.mark.parametrize("kind", METRICS)
def test_metrics(tmp_path: Path, kind: str) -> None:
    bad = write(tmp_path / "bad", METRICS[kind])
    for pair in ((bad, bad), (write(tmp_path / "good"), bad)):
        refused(tmp_path, "compare", *pair)


PER_IMAGE: dict[str, Any] = {
    "a list": [],
    "no rows": {"reconstruction": {"L1": []}},
    "no columns": {"reconstruction": {}},
    "an unknown section": {"other": {"L1": [1, 2]}},
    "a column is missing": {"effects": {"moved": ROWS["effects"]["moved"]}},
    "a number for a list": {"reconstruction": {"L1": 5}},
    "texts": {"reconstruction": {"L1": ["a", "b"]}},
    "no numbers": {"reconstruction": {"L1": [None, 1]}},
    "columns of other lengths": {"reconstruction": {"L1": [1], "MSE": [1, 2]}},
    "rows of other lengths": {"effects": ROWS["effects"] | {"whole": [[1], [1, 2]]}},
    "other shapes": {"effects": {"moved": [1, 2], "whole": [1, 2]}},
    "other layers": {"effects": {"moved": np.ones((2, 5, 3)).tolist(), "whole": np.ones((2, 4)).tolist()}},
    "a thousand levels": "[" * 1000 + "]" * 1000,
    "digits": '{"reconstruction": {"L1": [' + "9" * 400 + "]}}",
    "infinity": '{"reconstruction": {"L1": [Infinity]}}',
    "many rows": {"reconstruction": {"L1": [0] * 100_000}},
    "many columns": {"reconstruction": {"L1": [[0] * 100_000]}},
    "megabytes": " " * 2**25,
}


@pytest.mark.parametrize("kind", PER_IMAGE)
def test_rows(tmp_path: Path, kind: str) -> None:
    bad = write(tmp_path / "bad", rows=PER_IMAGE[kind])
    refused(tmp_path, "compare", bad, bad)


def test_numbers_at_the_end_of_what_there_is(tmp_path: Path) -> None:
    rows = ROWS | {"reconstruction": {"L1": [1e308, -1e308, 5e-324]}}
    a, b = write(tmp_path / "a", rows=rows), write(tmp_path / "b", RESULT | {"factors": {"a": 10**39}}, rows)
    for pair in ((a, a), (a, b)):
        result = answered(tmp_path, "compare", *pair)
        assert result.code == 0 and not result.errors


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_anything_in_the_place_of_anything(tmp_path: Path, count: int) -> None:
    good, bad = write(tmp_path / "good"), tmp_path / "bad"

    def try_result(changed: Any) -> None:
        answered(tmp_path, "compare", good, write(bad, changed))

    def try_rows(changed: Any) -> None:
        path = write(bad, rows=changed)
        answered(tmp_path, "compare", path, path)

    many(changes(RESULT), 5 * count, try_result)
    many(changes({name: ROWS[name] for name in ("reconstruction", "effects")}), 5 * count, try_rows)


@pytest.mark.parametrize("name", ["metrics.json", "per_image.json"])
def test_half_of_a_file(tmp_path: Path, name: str) -> None:
    good, bad = write(tmp_path / "good"), write(tmp_path / "bad")
    whole = (tmp_path / "bad" / name).read_bytes()
    for data in cuts(whole, 5):
        (tmp_path / "bad" / name).write_bytes(data)
        refused(tmp_path, "compare", good, bad)


@pytest.mark.faults
@pytest.mark.parametrize("rows", [{"half_way": {"detour": [0.5] * 50_000}}, {"half_way": {"detour": [[0] * 16_000]}}])
def test_the_largest_that_is_taken(tmp_path: Path, rows: Any) -> None:
    root = tmp_path / "in"
    root.mkdir()
    path = write(root / "a", rows=rows)
    assert answered_in_little_memory(root, "compare", path, path).code == 0
