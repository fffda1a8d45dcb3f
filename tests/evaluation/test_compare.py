"""`compare`: paired differences, and what cannot be compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from running import latentfuse

from pipeline.common.files import sha256
from pipeline.evaluation.compare import ALIKE, compare
from pipeline.evaluation.output import PER_IMAGE, read_rows, rows_as_json


def changed(evaluated: Path, folder: Path, key: str | None = None, shift: float = 0) -> Path:
    """A copy in which one value of the JSON differs, or every L1 is larger."""
    copy = Path(shutil.copytree(evaluated, folder))
    rows = read_rows((copy / PER_IMAGE).read_text())
    rows["reconstruction"]["L1"] += shift
    (copy / PER_IMAGE).write_text(rows_as_json(rows))
    result = json.loads((copy / "metrics.json").read_text()) | ({key: 1 if key == "seed" else "other"} if key else {})
    (copy / "metrics.json").write_text(json.dumps(result | {"per_image": sha256(copy / PER_IMAGE)}))
    return copy / "metrics.json"


def test_an_evaluation_does_not_differ_from_itself(evaluated: Path) -> None:
    found = compare(evaluated / "metrics.json", evaluated / "metrics.json")
    assert {each["difference"] for each in found} <= {0, None}
    assert not [each["metric"] for each in found if "count" in each["metric"] or each["metric"] == "realism features"]
    assert {"reconstruction MSE", "effects own_share", "effects leakages 5", "shapley own_share"} <= {
        each["metric"] for each in found
    }


def test_differences_are_paired(evaluated: Path, tmp_path: Path) -> None:
    """The same shift of every image has no spread, however much the images differ."""
    other = changed(evaluated, tmp_path / "other", shift=0.25)
    found = {each["metric"]: each for each in compare(evaluated / "metrics.json", other)}
    l1 = found["reconstruction L1"]
    assert l1["difference"] == pytest.approx(0.25, abs=1e-5) and l1["interval"] == pytest.approx([0.25] * 2, abs=1e-5)
    result = latentfuse("compare", evaluated / "metrics.json", other)
    assert result.code == 0 and result.out.count("| * |") == 1
    assert json.loads(latentfuse("compare", evaluated / "metrics.json", other, "--json").out) == list(found.values())


def test_of_three_or_more_the_mean_and_the_spread_are_told(evaluated: Path, tmp_path: Path) -> None:
    first = evaluated / "metrics.json"
    others = [changed(evaluated, tmp_path / str(shift), shift=shift) for shift in (0.25, 0.5)]
    found = {each["metric"]: each for each in json.loads(latentfuse("compare", first, *others, "--json").out)}
    l1 = found["reconstruction L1"]
    low = json.loads(first.read_text())["reconstruction"]["L1"]
    assert l1["values"] == pytest.approx([low, low + 0.25, low + 0.5], abs=1e-4)
    assert (l1["mean"], l1["deviation"]) == pytest.approx((low + 0.25, 0.25), abs=1e-4)
    assert found["reconstruction MSE"]["deviation"] == 0
    table = latentfuse("compare", first, *others).out
    assert table.startswith("| metric | 1 | 2 | 3 | mean | deviation |") and f"3: {others[1]}" in table
    latentfuse("compare", first, others[0], changed(evaluated, tmp_path / "x", "shards")).assert_one_line("shards")


@pytest.mark.parametrize(("key", "named"), ALIKE.items())
def test_other_faces_or_measures_are_refused(key: str, named: str, evaluated: Path, tmp_path: Path) -> None:
    other = changed(evaluated, tmp_path / "other", key)
    latentfuse("compare", evaluated / "metrics.json", other).assert_one_line(f"different {named}")


def test_realism_that_was_measured_otherwise_is_refused(evaluated: Path, tmp_path: Path) -> None:
    other = changed(evaluated, tmp_path / "other")
    result = json.loads(other.read_text())
    for key, value in (("net", "another"), ("features", 2048), ("train_count", 3)):
        other.write_text(json.dumps(result | {"realism": result["realism"] | {key: value}}))
        latentfuse("compare", evaluated / "metrics.json", other).assert_one_line(f"realism: different {key}")


def test_what_is_no_evaluation_is_named(evaluated: Path, tmp_path: Path) -> None:
    metrics = evaluated / "metrics.json"
    latentfuse("compare", metrics, tmp_path / "no.json").assert_one_line("no.json")
    latentfuse("compare", evaluated, metrics).assert_one_line("a folder")
    (tmp_path / "metrics.json").write_text("{}")
    latentfuse("compare", metrics, tmp_path / "metrics.json").assert_one_line("version is missing")
    (tmp_path / "metrics.json").write_bytes(metrics.read_bytes())
    latentfuse("compare", metrics, tmp_path / "metrics.json").assert_one_line("per_image.json")
    (tmp_path / PER_IMAGE).write_text("{}\n")
    latentfuse("compare", metrics, tmp_path / "metrics.json").assert_one_line("does not belong")


def test_rows_survive_the_file() -> None:
    rows = {"section": {"flat": np.array([1 / 3, 2e-9]), "deep": np.arange(12.0).reshape(2, 2, 3)}}
    read = read_rows(rows_as_json(rows))
    np.testing.assert_allclose(read["section"]["flat"], rows["section"]["flat"], rtol=1e-5)
    assert np.array_equal(read["section"]["deep"], rows["section"]["deep"])
