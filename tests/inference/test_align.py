"""`fuse` with photographs of one's own: in the bundle's frame, named where they are strange, and pasted back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import PLACES, SIZE, WALL, beside, distance, photograph
from PIL import Image
from running import Trained, latentfuse, picture

import pipeline
from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.inference import align, detector, landmarks, similarity
from pipeline.inference.bundle import Bundle
from pipeline.models import regions

needs_extra = pytest.mark.skipif(not detector.installed(), reason=f"{detector.EXTRA} is not installed")
FRAME = {name: [x / 2, y / 2 - 5] for name, (x, y) in regions.celeba(64, 64).items()}
"""Of a bundle whose faces are smaller and higher than CelebA's."""


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of another frame."""
    folder = Path(shutil.copytree(trained.bundle, tmp_path_factory.mktemp("framed") / "bundle"))
    change(folder, frame=FRAME)
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return pipeline.load_bundle(folder)


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path]:
    """Two photographs, one turned and one off the centre."""
    paths = tmp_path / "a.png", tmp_path / "b.png"
    for path, number, place in zip(paths, (2, 3), ("turned", "off centre"), strict=True):
        photograph(number, *PLACES[place])[0].save(path)
    return paths


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truth(number: int, place: str, path: Path) -> Path:
    """The landmarks of a photograph, in a file."""
    _, points = photograph(number, *PLACES[place])
    path.write_text(json.dumps({"landmarks": points}))
    return path


def as_points(frame: Any) -> dict[str, tuple[float, float]]:
    return {name: (x, y) for name, (x, y) in frame.items()}


@needs_extra
@pytest.mark.parametrize("place", PLACES)
def test_a_face_comes_to_the_bundles_frame(bundle: Bundle, tmp_path: Path, place: str) -> None:
    shown, points = photograph(2, *PLACES[place])
    shown.save(tmp_path / "a.png")
    framed = align.framed(bundle, tmp_path / "a.png", find=True)
    assert framed.image.shape == (1, 3, 32, 32) and not framed.notice and framed.points is not None
    assert distance(as_points(framed.move.points(points)), as_points(FRAME)) < 0.2
    assert distance(framed.points, as_points(FRAME)) < 0.15


def test_the_landmarks_of_a_file_come_first(bundle: Bundle, own: tuple[Path, Path], tmp_path: Path) -> None:
    """No detector is asked: this holds without the extra."""
    _, points = photograph(2, *PLACES["turned"])
    given = truth(2, "turned", tmp_path / "marks.json")
    for framed in (
        align.framed(bundle, own[0], find=True, given=given),
        align.framed(bundle, truth(2, "turned", own[0].with_suffix(".json")).with_suffix(".png"), find=True),
    ):
        assert framed.points is not None
        # The painted face is that of another head: five points do not fit exactly.
        assert distance(framed.points, as_points(framed.move.points(points))) < 0.01
        assert distance(framed.points, as_points(FRAME)) < 0.2


def test_landmarks_that_are_no_face_are_refused(bundle: Bundle, own: tuple[Path, Path], tmp_path: Path) -> None:
    given = tmp_path / "marks.json"
    given.write_text(json.dumps({"landmarks": {name: [3, 3] for name in regions.POINTS}}))
    with pytest.raises(UserError, match=f"{given}: landmarks.righteye: is the left eye's point"):
        align.framed(bundle, own[0], find=True, given=given)


def test_without_looking_for_faces_the_centre_is_taken(bundle: Bundle, own: tuple[Path, Path]) -> None:
    framed = align.framed(bundle, own[0], find=False)
    assert torch.equal(framed.image, bundle.load_image(own[0]))
    assert framed.points is None and framed.photograph.size == SIZE
    assert framed.move == similarity.centre_crop(*SIZE, 32, None)


@needs_extra
def test_fuse_aligns_both_and_says_no_more(folder: Path, bundle: Bundle, own: tuple[Path, Path]) -> None:
    out = own[0].with_name("c.png")
    result = latentfuse("fuse", folder, *own, "--scale", "1", "-o", out)
    assert (result.code, result.out, result.errors) == (0, f"{out}\n", "")
    a, b = (align.framed(bundle, path, find=True).image for path in own)
    shown = images.normalise(images.read(out))
    assert (shown - bundle.fuse(a, b, 0.5)[0]).abs().max() < 0.01
    latentfuse("fuse", folder, *own, "--align", "no", "--scale", "1", "-o", out)
    assert (images.normalise(images.read(out)) - bundle.fuse(*own, 0.5)[0]).abs().max() < 0.01
    assert latentfuse("fuse", folder, *own, "--align", "yes", "-o", out).code == 2


@needs_extra
def test_regions_lie_where_the_face_was_found(folder: Path, bundle: Bundle, own: tuple[Path, Path]) -> None:
    out = own[0].with_name("c.png")
    result = latentfuse("fuse", folder, *own, "--region", "mouth", "--scale", "1", "-o", out)
    assert (result.code, result.errors) == (0, "")
    a, b = (align.framed(bundle, path, find=True) for path in own)
    assert a.points is not None
    expected = bundle.fuse(a.image, b.image, 0.0, regions.mask("mouth", a.points, 32))
    assert (images.normalise(images.read(out)) - expected[0]).abs().max() < 0.01


@needs_extra
def test_photographs_with_no_face_or_several_are_named(folder: Path, own: tuple[Path, Path]) -> None:
    out, wall = own[0].with_name("c.png"), own[0].with_name("wall.png")
    Image.new("RGB", SIZE, WALL).save(wall)
    beside(Image.open(own[1]).convert("RGB"), 5, 0.6, 0, (500, 120))[0].save(own[1])
    result = latentfuse("fuse", folder, wall, own[1], "-o", out)
    assert result.code == 0
    assert result.errors.splitlines() == [
        f"fuse: {wall}: no face found; its centre is taken as it is",
        f"fuse: {own[1]}: 2 faces; the largest is taken",
    ]


def test_a_photograph_unlike_the_held_out_faces_is_named(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = Path(shutil.copytree(trained.bundle, tmp_path / "bundle")), tmp_path / "c.png"
    strange, usual = tmp_path / "faint.png", tmp_path / "usual.png"
    faint = np.random.default_rng(0).integers(120, 130, (64, 64, 3), np.uint8)
    Image.fromarray(faint).save(strange)
    picture(99).save(usual)
    bundle = pipeline.load_bundle(folder)
    of_faint, of_usual = (float(align.lost(bundle, bundle.load_image(path))) for path in (strange, usual))
    change(folder, reconstruction=of_usual)
    assert align.FAR_WORSE * of_usual < of_faint
    monkeypatch.setattr(detector, "installed", lambda: False)
    result = latentfuse("fuse", folder, usual, strange, "-o", out)
    assert result.code == 0 and result.errors.count("\n") == 1
    worse = f"fuse: {strange}: reconstructed {of_faint / of_usual:.1f} times worse than the bundle's held-out faces"
    assert result.errors.startswith(worse) and "pip install 'latentfuse[align]'" in result.errors
    change(folder, reconstruction=None)
    assert latentfuse("fuse", folder, usual, strange, "-o", out).errors == ""


def test_an_image_of_one_colour_is_strange(bundle: Bundle) -> None:
    assert align.lost(bundle, torch.full((1, 3, 32, 32), 0.3)).isfinite().all()


def pasted(*arguments: object, out: Path) -> np.ndarray:
    result = latentfuse("fuse", *arguments, "--paste", "-o", out)
    assert result.code == 0, result
    with Image.open(out) as shown:
        return np.asarray(shown).astype(int)


@needs_extra
def test_paste_changes_the_face_of_a_alone(folder: Path, own: tuple[Path, Path], tmp_path: Path) -> None:
    after = pasted(folder, *own, out=tmp_path / "c.png")
    before = np.asarray(Image.open(own[0])).astype(int)
    assert after.shape == before.shape
    changed = (after != before).any(2)
    _, points = photograph(2, *PLACES["turned"])
    apart = abs(complex(*points["lefteye"]) - complex(*points["righteye"]))
    y, x = np.nonzero(changed)
    away = np.hypot(x - points["nose"][0], y - points["nose"][1])
    assert 0.5 * apart < away.max() < 2.6 * apart
    assert 0.01 < changed.mean() < 0.15


def test_paste_of_a_region_changes_that_alone(folder: Path, own: tuple[Path, Path], tmp_path: Path) -> None:
    """By the centre that was cut out, where no face is looked for."""
    arguments = (folder, *own, "--align", "no", "--lambda", "0")
    before = np.asarray(Image.open(own[0])).astype(int)
    whole = (pasted(*arguments, out=tmp_path / "c.png") != before).any(2)
    half = (pasted(*arguments, "--region", "left", out=tmp_path / "d.png") != before).any(2)
    assert whole[:, :300].any() and whole[:, 360:].any()
    assert half[:, :300].any() and not half[:, 360:].any()


def test_paste_is_of_one_picture(folder: Path, own: tuple[Path, Path]) -> None:
    for other in (("--strip", "3"), ("--grid",), ("--animate", "c.gif")):
        latentfuse("fuse", folder, *own, "--paste", *other).assert_one_line(f"leave out {other[0]}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frame": [1, 2]}, "lefteye, righteye, nose, leftmouth, rightmouth are needed"),
        ({"frame": FRAME | {"nose": ["1", 2]}}, "landmarks.nose"),
        ({"frame": FRAME | {"nose": [1e9, 2]}}, "landmarks.nose"),
        ({"frame": FRAME | {"lefteye": FRAME["righteye"]}}, "landmarks.righteye"),
        ({"reconstruction": "good"}, "reconstruction: good: a number above 0"),
        ({"reconstruction": -0.5}, "reconstruction: -0.5"),
        ({"reconstruction": float("inf")}, "not the configuration of a bundle"),
    ],
)
def test_a_bundle_that_says_nonsense_is_refused(
    trained: Trained, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    folder = Path(shutil.copytree(trained.bundle, tmp_path / "bundle"))
    change(folder, **values)
    with pytest.raises(UserError, match=f"{folder / 'config.json'}.*{message}"):
        pipeline.load_bundle(folder)


def test_a_bundle_that_says_nothing_has_celebas_frame(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.bundle, tmp_path / "bundle"))
    change(folder, frame=None, reconstruction=None)
    bundle = pipeline.load_bundle(folder)
    assert bundle.frame == landmarks.usual(178, 218, 32) and bundle.reconstruction is None
    assert bundle.frame["lefteye"] == pytest.approx((12, 16), abs=0.2)  # (69, 111) of 178 x 218
