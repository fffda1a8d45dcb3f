"""Named regions: they lie where the landmarks are, in any picture; and soft edges."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.synth.faces import draw_factors, paint
from pipeline.data.synth.faces import landmarks as painted_landmarks
from pipeline.inference import landmarks
from pipeline.models import regions

SIZE = 128


def usual() -> landmarks.Points:
    return landmarks.fitted(regions.celeba(178, 218), 178, 218, SIZE)


def spread(mask: Tensor) -> tuple[float, float, float, float]:
    """First and last column, first and last row of a mask."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return float(columns[0]), float(columns[-1]), float(rows[0]), float(rows[-1])


def at(mask: Tensor, point: tuple[float, float]) -> bool:
    x, y = (round(value) for value in point)
    return bool(mask[y, x])


@pytest.mark.parametrize("number", range(8))
def test_regions_of_painted_faces_hold_their_parts(number: int) -> None:
    factors = draw_factors(3, number)
    points = landmarks.fitted(painted_landmarks(factors), *paint(factors).size, SIZE)
    masks = {name: regions.mask(name, points, SIZE) for name in regions.NAMES}
    assert at(masks["eyes"], points["lefteye"]) and at(masks["eyes"], points["righteye"])
    assert at(masks["nose"], points["nose"])
    assert at(masks["mouth"], points["leftmouth"]) and at(masks["mouth"], points["rightmouth"])
    for name, others in (("eyes", ("nose", "leftmouth", "rightmouth")), ("mouth", ("lefteye", "righteye", "nose"))):
        assert not any(at(masks[name], points[other]) for other in others)
    assert not any(at(masks["hair"], point) for point in points.values())
    middle = (points["lefteye"][0] + points["righteye"][0]) / 2
    assert at(masks["hair"], (middle, 4))
    assert all(0.01 < mask.mean() < 0.55 and set(mask.unique().tolist()) == {0.0, 1.0} for mask in masks.values())
    assert (masks["hair"] * masks["eyes"]).sum() == 0


def test_a_box_in_numbers() -> None:
    points = {
        "lefteye": (40, 50),
        "righteye": (60, 50),
        "nose": (50, 60),
        "leftmouth": (42, 70),
        "rightmouth": (58, 70),
    }
    # The unit is 20; the box of the mouth reaches 13 aside, 4.8 up and 7.2 down from (50, 70).
    assert spread(regions.mask("mouth", points, 100)) == (37, 63, 66, 77)
    assert spread(regions.mask("eyes", points, 100)) == (31, 69, 39, 57)
    turned_aside = {**points, "lefteye": (45, 50), "righteye": (55, 50)}  # the eyes come closer, the face stays
    assert torch.equal(regions.mask("mouth", points, 100), regions.mask("mouth", turned_aside, 100))


def test_regions_grow_and_move_with_the_face() -> None:
    points = {name: (x * 0.5 + 10, y * 0.5 + 20) for name, (x, y) in usual().items()}
    for name in regions.BOXES:
        if name == "hair":  # is cut by the picture's edge
            continue
        whole, half = (spread(regions.mask(name, each, SIZE)) for each in (usual(), points))
        shifts = (10, 10, 20, 20)
        assert half == pytest.approx([0.5 * w + s for w, s in zip(whole, shifts, strict=True)], abs=1)


@pytest.mark.parametrize("degrees", [-20, 35])
def test_regions_tilt_with_the_line_of_the_eyes(degrees: float) -> None:
    turn, centre = math.radians(degrees), complex(63.5, 63.5)
    turned = {}
    for name, (x, y) in usual().items():
        point = centre + (complex(x, y) - centre) * complex(math.cos(turn), math.sin(turn))
        turned[name] = (point.real, point.imag)
    for name in ("eyes", "nose", "mouth"):
        level, tilted = regions.mask(name, usual(), SIZE), regions.mask(name, turned, SIZE)
        places = level.nonzero().double() - 63.5  # rows, columns
        rows = (places[:, 0] * math.cos(turn) + places[:, 1] * math.sin(turn) + 63.5).round().long()
        columns = (places[:, 1] * math.cos(turn) - places[:, 0] * math.sin(turn) + 63.5).round().long()
        assert tilted[rows, columns].mean() > 0.95
        assert float(tilted.sum()) == pytest.approx(float(level.sum()), rel=0.05)


def test_a_backward_eye_line_counts_as_level() -> None:
    slip = {**usual(), "lefteye": usual()["righteye"], "righteye": usual()["lefteye"]}
    assert torch.equal(regions.mask("mouth", slip, SIZE), regions.mask("mouth", usual(), SIZE))


def test_halves_are_of_the_picture() -> None:
    left, right = (regions.mask(name, {}, 6) for name in ("left", "right"))
    assert torch.equal(left[0], torch.tensor([1.0, 1, 1, 0, 0, 0])) and torch.equal(left + right, torch.ones(6, 6))
    assert torch.equal(left, left[:1].expand(6, 6))


def test_a_region_may_lie_outside() -> None:
    close = {name: (x * 4 - 190, y * 4 - 280) for name, (x, y) in usual().items()}
    assert close["lefteye"][1] < 60 and regions.mask("hair", close, SIZE).sum() == 0


def test_unknown_regions() -> None:
    with pytest.raises(ValueError, match="known are: eyes, nose, mouth, hair, left, right"):
        regions.mask("ears", usual(), SIZE)


@pytest.mark.parametrize("size", [64, 178])
def test_shares_of_the_usual_boxes_are_those_of_the_masks(size: int) -> None:
    points = landmarks.fitted(regions.celeba(178, 178), 178, 178, size)
    for name, ends in zip(regions.BOXES, regions.celeba_boxes(), strict=True):
        left, right, top, bottom = spread(regions.mask(name, points, size))
        found = np.array([left, top, right + 1, bottom + 1]) / size
        assert found == pytest.approx(ends, abs=1.01 / size), name


def test_usual_landmarks_of_any_picture() -> None:
    assert regions.celeba(178, 218)["lefteye"] == (69, 111) and regions.celeba(178, 218)["rightmouth"] == (105, 152)
    for width, height in ((64, 64), (300, 300), (300, 200), (89, 109)):
        points = landmarks.fitted(regions.celeba(width, height), width, height, SIZE)
        for name, point in usual().items():
            assert points[name] == pytest.approx(point, abs=SIZE / min(width, height))  # a pixel of the picture


@pytest.mark.parametrize("pixels", [1, 5, 200])
def test_a_feathered_edge_is_a_ramp(pixels: int) -> None:
    soft = regions.feathered(regions.mask("left", {}, 32), pixels)
    assert torch.equal(soft, soft[:1].expand(32, 32)) and (soft[0].diff() <= 0).all()
    assert (soft[0, max(16 - pixels, 0)] < 1) and (soft[0, min(15 + pixels, 31)] > 0)
    if pixels < 16:
        assert (soft[:, : 16 - pixels] == 1).all() and (soft[:, 16 + pixels :] == 0).all()
        assert torch.allclose(soft[0, 15 - pixels : 17 + pixels], torch.linspace(1, 0, 2 * pixels + 2))


def test_feathers_keep_shapes_and_ends() -> None:
    random = (torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.98).float()
    soft = regions.feathered(random, 3)
    assert soft.shape == random.shape and soft.min() >= 0 and soft.max() <= 1
    torch.testing.assert_close(soft[1], regions.feathered(random[1], 3))
    far = torch.nn.functional.max_pool2d(random, 7, 1, 3) == 0
    assert far.any() and (soft[far] == 0).all() and (soft[~far] > 0).all()
    assert torch.equal(regions.feathered(random, 0), random)
    for value in (0.0, 1.0):
        assert torch.equal(regions.feathered(torch.full((32, 32), value), 3), torch.full((32, 32), value))


def test_a_composite_is_exact_where_the_mask_is() -> None:
    fused, back = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = regions.mask("right", {}, 8)
    for shaped in (mask, mask.expand(2, 8, 8)):
        laid = regions.composite(fused, back, shaped)
        assert torch.equal(laid[..., 4:], fused[..., 4:]) and torch.equal(laid[..., :4], back[..., :4])
