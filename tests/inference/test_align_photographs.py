"""`latentfuse align`: photographs into CelebA's layout, and landmarks for what is there."""

import json
from pathlib import Path

import numpy as np
import pytest
from making import hashes, jpeg, read_all
from photographs import PLACES, SIZE, WALL, beside, distance, folder_of, photograph
from PIL import Image
from running import latentfuse, listing

from pipeline.data.source.photographs import open_source
from pipeline.inference import detector
from pipeline.models import regions

needs_extra = pytest.mark.skipif(not detector.installed(), reason=f"{detector.EXTRA} is not installed")
LANDMARKS = "list_landmarks_align_celeba"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("photographs") / "own")


@needs_extra
def test_writes_celebas_layout_that_shard_reads(photographs: Path, tmp_path: Path) -> None:
    out, shards = tmp_path / "out", tmp_path / "shards"
    result = latentfuse("align", photographs, out, "--workers", "1")
    assert (result.code, result.errors) == (0, "")
    assert result.out == f"10 faces of 10 photographs in {out}\n"
    for record in open_source(out).records:
        with Image.open(out / "img_align_celeba" / record.name) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (178, 218))
        found = {name: (float(x), float(y)) for name, (x, y) in record.landmarks.items()}
        assert distance(found, regions.celeba(178, 218)) < 0.15
    assert latentfuse("shard", out, shards, "--split", "0.3", "--workers", "1").code == 0
    samples = read_all(shards / "train") | read_all(shards / "test")
    assert len(samples) == 10 and all(set(meta["landmarks"]) == set(regions.POINTS) for _, meta in samples.values())  # type: ignore[call-overload]


@needs_extra
def test_run_again_does_nothing_and_an_interrupted_run_starts_anew(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = latentfuse("align", photographs, out)
    before = hashes(out)
    assert latentfuse("align", photographs, out) == first and hashes(out) == before
    record = json.loads((out / "align.json").read_text())
    (out / "align.json").write_text(json.dumps(record | {"complete": False}))
    next((out / "img_align_celeba").iterdir()).unlink()
    assert latentfuse("align", photographs, out, "--workers", "2") == first and hashes(out) == before
    latentfuse("align", photographs, out, "--all").assert_one_line(str(out), "another --all", "another folder")
    (photographs.parent / "more").mkdir(exist_ok=True)
    photograph(9, *PLACES["large"])[0].save(photographs.parent / "more" / "a.png")
    latentfuse("align", photographs.parent / "more", out).assert_one_line("faces of other photographs")
    assert hashes(out) == before


@needs_extra
def test_the_largest_face_or_all_of_them(tmp_path: Path) -> None:
    wall, _ = beside(Image.new("RGB", SIZE, WALL), 3, 0.6, 0, (120, 120))
    (tmp_path / "in").mkdir()
    beside(wall, 2, 1.2, 10, (430, 260))[0].save(tmp_path / "in" / "two.png")
    assert latentfuse("align", tmp_path / "in", tmp_path / "one").out.startswith("1 faces of 1")
    assert latentfuse("align", tmp_path / "in", tmp_path / "all", "--all").out.startswith("2 faces of 1")
    names = [record.name for record in open_source(tmp_path / "all").records]
    assert names == ["two-1.jpg", "two-2.jpg"]
    one, first, second = (
        np.asarray(Image.open(tmp_path / place), np.float64).mean((0, 1))
        for place in ("one/img_align_celeba/two.jpg", *(f"all/img_align_celeba/{name}" for name in names))
    )
    assert np.array_equal(one, first) and np.abs(one - second).max() > 10


@needs_extra
def test_what_was_not_found_is_counted_and_named(photographs: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", faces=1)
    (folder / "cut.jpg").write_bytes(jpeg(0)[:200])
    Image.new("RGB", SIZE, WALL).save(folder / "wall.png")
    result = latentfuse("align", folder, tmp_path / "out")
    assert result.code == 0 and result.out == f"5 faces of 7 photographs in {tmp_path / 'out'}; 2 without\n"
    cut, wall = result.errors.splitlines()
    assert cut.startswith("align: cut.jpg: not a readable image") and wall == "align: wall.png: no face found"
    told = json.loads(latentfuse("align", folder, tmp_path / "out", "--json").out)
    assert (told["photographs"], told["faces"], set(told["problems"])) == (7, 5, {"cut.jpg", "wall.png"})


@needs_extra
def test_landmarks_alone_are_found_by_shard(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", faces=1)
    before = hashes(folder)
    result = latentfuse("align", "--landmarks-only", folder)
    assert (result.code, result.errors) == (0, "") and f"{LANDMARKS}.csv" in result.out
    records = open_source(folder).records
    assert {record.name for record in records} == {f"{name} 1.png" for name in PLACES}
    for record in records:
        truth = photograph(1, *PLACES[record.name.removesuffix(" 1.png")])[1]
        assert distance({name: (x, y) for name, (x, y) in record.landmarks.items()}, truth) < 0.2
    again = latentfuse("align", "--landmarks-only", folder)
    again.assert_one_line(f"{LANDMARKS}.csv", "move it away")
    (folder / f"{LANDMARKS}.csv").unlink()
    assert hashes(folder) == before


@needs_extra
def test_no_face_at_all(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", SIZE, WALL).save(tmp_path / "in" / "wall.png")
    latentfuse("align", tmp_path / "in", tmp_path / "out").assert_one_line("no face in any of 1", "wall.png")
    latentfuse("align", "--landmarks-only", tmp_path / "in").assert_one_line("no face in any of 1")
    assert listing(tmp_path / "in") == {"wall.png"}


def test_what_cannot_be_aligned_is_refused(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    latentfuse("align", photographs, tmp_path / "mine").assert_one_line("not written by align")
    latentfuse("align", photographs).assert_one_line("name the folder to write to")
    latentfuse("align", tmp_path / "none", tmp_path / "out").assert_one_line("no such file or folder")
    latentfuse("align", tmp_path / "mine", tmp_path / "out").assert_one_line("no .jpg")
    latentfuse("align", "--landmarks-only", photographs, tmp_path / "out").assert_one_line("leave out")
    latentfuse("align", "--landmarks-only", photographs, "--all").assert_one_line("leave out --all")
    monkeypatch.setattr(detector, "installed", lambda: False)
    latentfuse("align", photographs, tmp_path / "out").assert_one_line("pip install 'latentfuse[align]'")
    latentfuse("align", "--landmarks-only", photographs).assert_one_line("pip install 'latentfuse[align]'")
    assert listing(tmp_path) == {"mine", "mine/letter.txt"}
