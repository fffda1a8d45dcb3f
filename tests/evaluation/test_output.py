"""The files of an evaluation: all of one evaluation, or no JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import listing

from pipeline.common.errors import UserError
from pipeline.common.files import sha256
from pipeline.evaluation import output

FILES = {"metrics.json", "per_image.json", "metrics.md", "a.png", "b.png"}


def written(out: Path, number: int, *more: str) -> None:
    rows = {"section": {"x": np.full(3, number)}}
    figures = {name: Image.new("RGB", (4, 4), (number, 0, 0)) for name in ("a", "b", *more)}
    output.write(out, {"number": number}, rows, figures, lambda result: f"{result['number']}\n")


def test_everything_is_written(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").mkdir()  # left by one that was killed
    (tmp_path / ".out.tmp" / "old.png").touch()
    written(tmp_path / "out", 1, "shapley")
    assert "out/shapley.png" in listing(tmp_path)
    written(tmp_path / "out", 2)
    assert listing(tmp_path) == {"out", *(f"out/{name}" for name in FILES)}
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result == {"number": 2, "per_image": sha256(tmp_path / "out" / "per_image.json")}
    assert (tmp_path / "out" / "metrics.md").read_text() == "2\n"


def test_a_kill_leaves_no_json_beside_figures_of_two_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes: before each of the moves into place."""
    move = Path.replace
    for killed_at in sorted(FILES):
        out = tmp_path / killed_at
        written(out, 1)

        def killed(path: Path, target: Path, at: Path = out / killed_at) -> Path:
            if target == at:
                raise KeyboardInterrupt
            return move(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                written(out, 2)
        assert listing(out) == FILES - {"metrics.json"}
        written(out, 2)
        assert listing(out) == FILES


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out: cannot be written"):
        written(tmp_path / "out", 1)
    assert listing(tmp_path) == {"out"}
