"""Similarities: Umeyama's, an antialiased warp, and a paste that leaves the rest alone. No detector is needed."""

import cmath
import math

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling

from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.inference import landmarks, similarity
from pipeline.inference.similarity import Similarity, between, paste, warp
from pipeline.models import regions

FACE = regions.celeba(178, 218)


def umeyama(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scaled rotation and shift by singular values, as in the paper (eq. 40 to 42)."""
    centred, aim = source - source.mean(0), target - target.mean(0)
    u, d, v = np.linalg.svd(aim.T @ centred / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    scaled = (d * sign).sum() / centred.var(0).sum() * (u @ np.diag(sign) @ v)
    return scaled, target.mean(0) - scaled @ source.mean(0)


def as_array(points: regions.Landmarks) -> np.ndarray:
    return np.array([points[name] for name in regions.POINTS])


def test_is_umeyamas() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        source, target = generator.normal(size=(2, 5, 2)) * 40 + as_array(FACE)
        move = between(*(dict(zip(regions.POINTS, each.tolist(), strict=True)) for each in (source, target)))
        scaled, shift = umeyama(source, target)
        moved = move.points(dict(zip(regions.POINTS, source.tolist(), strict=True)))
        np.testing.assert_allclose(as_array(moved), source @ scaled.T + shift, atol=1e-9)


def test_finds_the_similarity_that_was_applied_and_its_inverse() -> None:
    move = Similarity(cmath.rect(0.3, 0.5), 20 - 7j)
    found = between(FACE, move.points(FACE))
    assert found.factor == pytest.approx(move.factor) and found.shift == pytest.approx(move.shift)
    np.testing.assert_allclose(as_array(move.inverse.points(move.points(FACE))), as_array(FACE))


@pytest.mark.parametrize("point", [(5.0, 5.0), (1e300, 1.0), (1e25, 1e25)])
def test_points_that_are_no_face_are_refused(point: tuple[float, float]) -> None:
    points = dict.fromkeys(regions.POINTS, point) | ({"nose": (0.0, 0.0)} if point[1] == 1.0 else {})
    with pytest.raises(UserError, match="not those of a face"):
        between(points, FACE)


def dotted(points: regions.Landmarks, size: tuple[int, int], radius: int) -> Image.Image:
    """A smooth white dot at each of the points, on black."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    dots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2)) for px, py in as_array(points))
    return Image.fromarray((255 * np.clip(dots, 0, 1)).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize(
    ("scale", "degrees"), [(1.0, 0.0), (0.2, 0.0), (0.15, 20.0), (0.5, -35.0), (1.6, 10.0), (0.37, 90.0)]
)
def test_pixels_move_as_points_do(scale: float, degrees: float) -> None:
    large = {name: (4 * x, 4 * y) for name, (x, y) in FACE.items()}
    factor = cmath.rect(scale, math.radians(degrees))
    middle = factor * complex(*large["nose"])
    move, size = Similarity(factor, 300 + 250j - middle), (600, 500)
    radius = 10
    moved = warp(dotted(large, (712, 872), radius), move, size)
    places = as_array(move.points(large))
    pixels = np.asarray(moved.convert("L"), np.float64)
    reach = math.ceil(2.5 * radius * scale)
    for px, py in places:
        left, top = round(px) - reach, round(py) - reach
        window = pixels[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
        x, y = (np.arange(2 * reach + 1) + start for start in (left, top))
        found = ((window.sum(0) * x).sum() / window.sum(), (window.sum(1) * y).sum() / window.sum())
        assert math.dist(found, (px, py)) < 0.15


def test_shrinking_is_antialiased() -> None:
    """Stripes finer than the target's pixels become grey, not coarser stripes."""
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::3] = 255
    small = np.asarray(warp(Image.fromarray(stripes), Similarity(0.125 + 0j, 0j), (50, 50)))
    assert small[5:-5, 5:-5].std() < 3
    aliased = np.asarray(Image.fromarray(stripes).resize((50, 50), Resampling.NEAREST))
    assert aliased.std() > 50, "the stripes show how it would be"


def test_what_is_outside_repeats_the_edge() -> None:
    pixels = np.zeros((40, 30, 3), np.uint8)
    pixels[:, :15], pixels[:, 15:] = (200, 0, 0), (0, 0, 100)
    wide = np.asarray(warp(Image.fromarray(pixels), Similarity(1 + 0j, 50 + 30j), (130, 100)))
    assert (wide[:, :60] == (200, 0, 0)).all() and (wide[:, 70:] == (0, 0, 100)).all()


@pytest.mark.parametrize(("width", "height", "crop"), [(178, 218, None), (120, 75, None), (89, 110, 61)])
def test_the_centre_crop_is_a_similarity(width: int, height: int, crop: int | None) -> None:
    move = similarity.centre_crop(width, height, 64, crop)
    points = regions.celeba(width, height)
    fitted = landmarks.fitted(points, width, height, 64, crop)
    np.testing.assert_allclose(as_array(move.points(points)), as_array(fitted), atol=0.01)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8))
    picture = picture.resize((width, height), Resampling.BICUBIC)
    warped = images.from_pillow(warp(picture, move, (64, 64))).float()
    cropped = images.fit(images.from_pillow(picture), 64, crop).float()
    assert (warped - cropped).abs().mean() < 2


def test_a_face_put_back_is_where_it_was() -> None:
    generator = np.random.default_rng(0)
    pixels = Image.fromarray(generator.integers(0, 256, (16, 20, 3), np.uint8))
    photograph = pixels.resize((640, 480), Resampling.BICUBIC)
    points = Similarity(cmath.rect(1.3, 0.3), 200 + 60j).points(FACE)
    frame = landmarks.usual(178, 218, 128)
    move = between(points, frame)
    weight = regions.oval(frame, 128)
    same = paste(photograph, warp(photograph, move, (128, 128)), move, weight)
    before, after = (np.asarray(each).astype(int) for each in (photograph, same))
    assert np.abs(before - after).mean() < 0.5 and np.abs(before - after).max() < 16
    white = np.asarray(paste(photograph, Image.new("RGB", (128, 128), "white"), move, weight)).astype(int)
    changed = (white != before).any(2)
    nose, outside = points["nose"], complex(*points["lefteye"]) - complex(*points["righteye"])
    assert (white[round(nose[1]), round(nose[0])] == 255).all()
    reach = 2.1 * abs(outside)
    y, x = np.nonzero(changed)
    assert np.hypot(x - nose[0], y - nose[1]).max() < reach
    assert 0.02 < changed.mean() < 0.35
    steps = np.abs(np.diff((white - before)[..., 0] / np.maximum(1, 255 - before[..., 0]), axis=1))
    assert steps.max() < 0.1, "the edge is soft"


def test_a_face_at_the_edge_of_its_photograph_is_pasted_as_far_as_it_is_seen() -> None:
    photograph = Image.new("RGB", (200, 150), (10, 20, 30))
    frame = landmarks.usual(178, 218, 64)
    face = Image.new("RGB", (64, 64), "white")
    for shift in (-60 - 40j, 90 - 10j):
        points = Similarity(1 + 0j, shift).points(FACE)
        pasted = np.asarray(paste(photograph, face, between(points, frame), regions.oval(frame, 64)))
        assert pasted.shape == (150, 200, 3) and (pasted == 255).all(2).any()
    away = between(Similarity(1 + 0j, 900 + 900j).points(FACE), frame)
    assert paste(photograph, face, away, regions.oval(frame, 64)).tobytes() == photograph.tobytes()


@pytest.mark.parametrize("size", [32, 64, 256])
def test_the_oval_is_the_face_and_fades_to_nothing_at_the_border(size: int) -> None:
    points = landmarks.usual(178, 218, size)
    weight = regions.oval(points, size)
    assert weight.shape == (size, size) and weight.min() == 0 and weight.max() == 1
    for border in (weight[0], weight[-1], weight[:, 0], weight[:, -1]):
        assert border.max() == 0
    for x, y in points.values():
        assert weight[round(y), round(x)] > 0.7
    assert torch.equal(regions.oval(points, size), weight)
    assert 0.1 < (weight > 0.5).float().mean() < 0.5
