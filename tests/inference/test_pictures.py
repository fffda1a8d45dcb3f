"""Tiles with text around them: what stands where, and that it can be read."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.inference import pictures
from pipeline.inference.pictures import GAP, LEAST

Texts = dict[str, tuple[float, float]]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Texts:
    """Every text that is drawn, and at what point."""
    drawn: Texts = {}
    draw = ImageDraw.ImageDraw.text

    def note(self: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *more: Any, **options: Any) -> None:
        drawn[text] = place
        draw(self, place, text, *more, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return drawn


def face(value: float, side: int = 32) -> Tensor:
    """An image of one colour, a red, in [-1, 1]."""
    return torch.tensor([value, -1, -1])[:, None, None].expand(3, side, side)


def box(picture: Image.Image, value: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what has the colour of a face."""
    rows, columns = np.nonzero((np.asarray(picture) == (round((value + 1) * 127.5), 0, 0)).all(2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def inked(picture: Image.Image, left: int, top: int, right: int, bottom: int) -> bool:
    """Whether something dark is written there."""
    return bool((np.asarray(picture)[max(top, 0) : bottom, max(left, 0) : right] < 100).any())


def test_text_stands_above_columns_and_left_of_rows(texts: Texts) -> None:
    rows: list[list[Tensor | None]] = [[face(-0.1), face(0.1)], [face(0.2), None], [None, face(0.3)]]
    picture = pictures.labelled(rows, ["A", "B"], ["", "1 light\nand colour"], headings={2: ["", "lambda 0"]})
    for value, text in ((-0.1, "A"), (0.1, "B"), (0.3, "lambda 0")):
        left, top, right, bottom = box(picture, value)
        assert (right - left, bottom - top) == (LEAST, LEAST)
        x, y = texts[text]
        assert x == (left + right) / 2 and top - 40 < y < top
        assert inked(picture, left, top - 30, right, top)
    left, top, right, bottom = box(picture, 0.2)
    assert texts["1 light\nand colour"][1] == (top + bottom) / 2
    assert inked(picture, 0, top, left, bottom) and not inked(picture, 0, bottom + 10, left, picture.height)
    assert box(picture, 0.1)[0] - box(picture, -0.1)[2] == GAP
    assert box(picture, 0.2)[1] - box(picture, -0.1)[3] == GAP < box(picture, 0.3)[1] - box(picture, 0.2)[3]


@pytest.mark.parametrize(("side", "least", "expected"), [(32, 192, 192), (128, 192, 256), (256, 192, 256), (64, 1, 64)])
def test_faces_are_enlarged_by_whole_numbers(side: int, least: int, expected: int) -> None:
    picture = pictures.labelled([[face(0.1, side)]], least=least)
    assert picture.size == (expected, expected)


def test_every_pixel_of_a_face_is_shown() -> None:
    image = torch.rand(3, 32, 32) * 2 - 1
    picture = pictures.labelled([[face(0), image]], ["A", "B"], least=32)
    left, top, *_ = box(picture, 0)
    width = (picture.width + GAP) // 2
    shown = picture.crop((left + width, top, left + width + 32, top + 32))
    expected = ((image + 1) * 127.5).round().permute(1, 2, 0)
    assert np.abs(np.asarray(shown).astype(float) - expected.numpy()).max() <= 1


def test_small_faces_stand_apart_so_that_their_text_can_be_read(texts: Texts) -> None:
    wide, high = "lambda 0.667 or so", "one\ntwo\nthree\nfour"
    picture = pictures.labelled([[face(0.1), face(0.2)], [face(0.3)]], ["A", wide], [high, "next"], least=1)
    assert box(picture, 0.2)[0] - box(picture, 0.1)[0] > 100 and texts["A"][0] < texts[wide][0]
    assert box(picture, 0.3)[1] - box(picture, 0.1)[1] > 50
    assert texts[high][1] - 36 > texts["A"][1] + 8, "the first line stands under the text above the column"
    assert texts[wide][0] + 60 < picture.width


def test_text_grows_with_the_faces() -> None:
    def height_of_a(least: int) -> int:
        picture = pictures.labelled([[face(0.1)]], ["A"], least=least)
        dark = np.flatnonzero((np.asarray(picture).max(axis=2) < 60).any(axis=1))
        return int(dark.max() - dark.min())

    assert height_of_a(1) == height_of_a(LEAST) and height_of_a(4 * LEAST) > 3 * height_of_a(LEAST)


def test_more_pixels_than_we_read_are_refused() -> None:
    with pytest.raises(UserError, match="pixels: 67,108,864 are the most"):
        pictures.labelled([[face(0.1)] * 1000], least=10_000)


def test_headings_say_what_the_ends_of_a_strip_are() -> None:
    headings = pictures.falling_headings(4)
    assert headings == ["A' (lambda 1)", "lambda 0.667", "lambda 0.333", "B' (lambda 0)"]
    assert pictures.falling_headings(12, "")[-2:] == ["lambda 0.091", "lambda 0"]
