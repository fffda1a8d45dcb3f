"""The files of an evaluation: all of one evaluation, or no JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import file_size_limit, listing

from pipeline.common.errors import UserError
from pipeline.common.files import sha256
from pipeline.evaluation import output
from pipeline.evaluation.output import reserved

FILES = {"metrics.json", "per_image.json", "metrics.md", "a.png", "b.png"}


def written(out: Path, number: int, *more: str) -> None:
    rows = {"section": {"x": np.full(3, number)}}
    figures = {name: Image.new("RGB", (4, 4), (number, 0, 0)) for name in ("a", "b", *more)}
    output.write(out, {"number": number}, rows, figures, lambda result: f"{result['number']}\n")


def test_everything_is_written(tmp_path: Path) -> None:
    left = tmp_path / "out" / ".evaluation-0123abcd.tmp"  # by one that was killed
    left.mkdir(parents=True)
    (left / "old.png").touch()
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


def a_file(out: Path) -> None:
    out.touch()


def a_bundle(out: Path) -> None:
    out.mkdir()
    (out / "config.json").write_text('{"latentfuse": "0.1.0"}')


def metrics_of_another_program(out: Path) -> None:
    out.mkdir()
    (out / "metrics.json").write_text('{"accuracy": 1}')


def a_picture_of_that_name(out: Path) -> None:
    out.mkdir()
    (out / "path.png").write_text("precious")


def a_link_in_place_of_the_table(out: Path) -> None:
    written(out, 1)
    (out / "metrics.md").unlink()
    (out / "metrics.md").symlink_to(out.parent)


def a_loop_of_links(out: Path) -> None:
    out.symlink_to(out)


REFUSED: dict[Callable[[Path], None], str] = {
    a_file: "cannot be written: File exists",
    a_bundle: "is a bundle",
    metrics_of_another_program: "holds metrics.json, which no evaluation wrote",
    a_picture_of_that_name: "holds path.png, which no evaluation wrote",
    a_link_in_place_of_the_table: "holds metrics.md, which no evaluation wrote",
    a_loop_of_links: "cannot be written",
}


@pytest.mark.parametrize("made", REFUSED, ids=lambda made: made.__name__)
def test_what_is_not_an_evaluation_s_is_refused_before_measuring(tmp_path: Path, made: Callable[[Path], None]) -> None:
    made(tmp_path / "out")
    before = listing(tmp_path)
    with pytest.raises(UserError, match=REFUSED[made]), reserved(tmp_path / "out"):
        pytest.fail("it would have measured")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("made", [a_file, a_bundle, a_loop_of_links], ids=lambda made: made.__name__)
def test_nor_is_a_folder_below_it_made(tmp_path: Path, made: Callable[[Path], None]) -> None:
    made(tmp_path / "out")
    before = listing(tmp_path)
    with pytest.raises(UserError, match="out"), reserved(tmp_path / "out" / "deep" / "er"):
        pytest.fail("it would have measured")
    assert listing(tmp_path) == before


def test_no_room_is_found_out_before_measuring(tmp_path: Path) -> None:
    full = pytest.raises(UserError, match="e/v: cannot be written: File too large")
    with file_size_limit(1000), full, reserved(tmp_path / "e" / "v"):
        pytest.fail("it would have measured")
    assert not listing(tmp_path)


def test_what_fails_while_measuring_leaves_no_folder_and_keeps_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="shards"), reserved(tmp_path / "e"):
        raise OSError("shards")
    assert not listing(tmp_path)
    with reserved(tmp_path / "e"):
        written(tmp_path / "e", 1)
    (tmp_path / "e" / "metrics.json").unlink()  # as a kill leaves it
    (tmp_path / "e" / "notes.txt").touch()
    with reserved(tmp_path / "e"):
        written(tmp_path / "e", 2)
    assert listing(tmp_path / "e") == FILES | {"notes.txt"}
