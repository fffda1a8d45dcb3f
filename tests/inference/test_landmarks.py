"""Landmarks: moved as pixels are, and read from where they are."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.data.image_check import centre_square
from pipeline.inference import landmarks
from pipeline.models import regions

POINTS = {"lefteye": [20, 30], "righteye": [34, 31], "nose": [27, 40], "leftmouth": [21, 48], "rightmouth": [33, 47]}


def dotted(width: int, height: int, x: int, y: int) -> Image.Image:
    """A black picture with a white square of 5 pixels around (x, y)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize(
    ("width", "height", "crop"), [(90, 90, None), (89, 109, None), (120, 75, None), (89, 110, 61), (64, 64, 500)]
)
def test_landmarks_move_with_their_pixels(width: int, height: int, crop: int | None, size: int) -> None:
    x, y = width // 2 + 9, height // 2 - 13
    picture = dotted(width, height, x, y)
    points = dict.fromkeys(regions.POINTS, (x, y))
    moved = landmarks.fitted(points, width, height, size, crop)
    assert set(moved) == set(regions.POINTS)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    square, kept = centre_square(stream.getvalue(), "x", size, crop, 100)
    for fitted in (images.fit(images.from_pillow(picture), size, crop), images.decode(square.data, "square")):
        bright = fitted.double().mean(0)
        bright = torch.where(bright > 20, bright, 0)
        middle = [float((bright.sum(axis) * torch.arange(size)).sum() / bright.sum()) for axis in (0, 1)]
        assert moved["nose"] == pytest.approx(middle, abs=0.3)
    assert moved["nose"] == tuple(kept.point(x, y))  # what `shard` writes when it crops


def test_landmarks_of_a_sample() -> None:
    sample: dict[str, Any] = {"landmarks": POINTS, "width": 54, "height": 80}
    assert landmarks.of_sample(sample, 54) == {name: (x, y - 13) for name, (x, y) in POINTS.items()}
    assert landmarks.of_sample(sample, 40, crop=40) == {name: (x - 7, y - 20) for name, (x, y) in POINTS.items()}
    celeba = landmarks.fitted(regions.celeba(54, 80), 54, 80, 64)
    some = {name: POINTS[name] for name in ("lefteye", "nose")}
    for other in ({}, some, POINTS | {"nose": 5}, POINTS | {"nose": ["a", 1]}, "nose", 3, [1]):
        assert landmarks.of_sample(sample | {"landmarks": other}, 64) == celeba
    for width in ("54", -1, True, float("nan"), [54]):
        assert landmarks.of_sample(sample | {"width": width}, 178) == landmarks.of_sample({}, 178)
    assert landmarks.of_sample({}, 178)["lefteye"] == pytest.approx((69, 91), abs=0.01)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    return tmp_path / "a.jpg"  # only its name counts


def write(path: Path, **values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


def test_a_file_beside_the_photograph(photograph: Path) -> None:
    assert landmarks.of_photograph(photograph, 54, 80, 64) is None
    write(photograph.with_suffix(".json"), attributes={}, landmarks={})  # shards of a folder without landmarks
    assert landmarks.of_photograph(photograph, 54, 80, 64) is None
    write(photograph.with_suffix(".json"), landmarks=POINTS)
    assert landmarks.of_photograph(photograph, 54, 80, 64) == landmarks.fitted(POINTS, 54, 80, 64)
    write(photograph.with_suffix(".json"), landmarks=POINTS, width=54, height=80)
    assert landmarks.of_photograph(photograph, 54, 80, 64) == landmarks.fitted(POINTS, 54, 80, 64)


def test_a_named_file_comes_first(photograph: Path, tmp_path: Path) -> None:
    write(photograph.with_suffix(".json"), landmarks={})
    given = write(tmp_path / "other.json", landmarks=POINTS)
    assert landmarks.of_photograph(photograph, 54, 80, 64, given=given) == landmarks.fitted(POINTS, 54, 80, 64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"landmarks": {**POINTS, "nose": [1]}}, r"landmarks\.nose: \[x, y\] in pixels is needed, .* not \[1\]"),
        ({"landmarks": {**POINTS, "nose": ["1", 2]}}, "landmarks.nose"),
        ({"landmarks": {**POINTS, "nose": [float("nan"), 2]}}, "NaN is not a finite number"),
        ({"landmarks": {**POINTS, "nose": [1e308, 2]}}, "landmarks.nose"),
        ({"landmarks": {**POINTS, "nose": [10**400, 2]}}, "a number of 401 digits"),
        ({"landmarks": {**POINTS, "lefteye": POINTS["righteye"]}}, "righteye: is the left eye's point, too"),
        ({"landmarks": {"nose": [1, 2]}}, "landmarks.lefteye: .* not null"),
        ({"landmarks": [1, 2]}, "lefteye, righteye, nose, leftmouth, rightmouth are needed"),
        ({"landmarks": POINTS, "width": 80, "height": 54}, "of a picture of 80 x 54, but .*a.jpg is 54 x 80"),
    ],
)
def test_wrong_landmarks(photograph: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    for path, given in ((tmp_path / "given.json", True), (photograph.with_suffix(".json"), False)):
        write(path, **values)
        with pytest.raises(UserError, match=f"{path}.*{message}"):
            landmarks.of_photograph(photograph, 54, 80, 64, given=path if given else None)


def test_files_that_are_none(photograph: Path, tmp_path: Path) -> None:
    for content, message in ((b"{", "not JSON"), (b"\xff", "not JSON"), (b"[]", "are needed"), (b"{}", "are needed")):
        (tmp_path / "given.json").write_bytes(content)
        with pytest.raises(UserError, match=message):
            landmarks.of_photograph(photograph, 54, 80, 64, given=tmp_path / "given.json")
    with pytest.raises(UserError, match="No such file"):
        landmarks.of_photograph(photograph, 54, 80, 64, given=tmp_path / "none.json")
