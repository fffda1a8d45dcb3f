"""A small canvas for painted faces: antialiased flat shapes, and soft light on top of them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.data.synth.colours import Colour
from pipeline.data.synth.head import HEIGHT, WIDTH, Points

Pixels = NDArray[np.float32]  # (3, HEIGHT, WIDTH), or (HEIGHT, WIDTH) where there is one number for each pixel

# What a pixel is made of. The sum of four codes tells how many of the four are skin, hair and other: its digits to
# base 8, from the lowest.
SKIN, HAIR, OTHER = 1, 8, 64

COLUMNS, ROWS = (np.arange(size, dtype=np.float32) + 0.5 for size in (WIDTH, HEIGHT))
"""Where the pixels' centres are."""
_SCALE = 2  # supersampling of the shapes


class Canvas:
    """Flat shapes over nothing, with what each pixel is made of: skin, hair or other.

    A shape without a `material` leaves that of its pixels as it is, so it must lie inside of the figure.
    """

    def __init__(self) -> None:
        size = (WIDTH * _SCALE, HEIGHT * _SCALE)
        # Black under the shapes: reducing then gives colours already multiplied by coverage.
        self._colours, self._materials = Image.new("RGB", size), Image.new("L", size)
        self._draw, self._draw_material = ImageDraw.Draw(self._colours), ImageDraw.Draw(self._materials)
        self._blend = ImageDraw.Draw(self._colours, "RGBA")  # slower, and only needed below full opacity

    def fill(self, points: Points, colour: Colour, material: int | None = None, opacity: float = 1.0) -> None:
        """Fill a polygon."""
        self._paint("polygon", points, colour, material, opacity)

    def band(
        self, upper: Points, lower: Points, colour: Colour, material: int | None = None, opacity: float = 1.0
    ) -> None:
        """Fill what lies between two lines that run alike."""
        self.fill(np.concatenate([upper, lower[::-1]]), colour, material, opacity)

    def line(
        self, points: Points, colour: Colour, width: float, opacity: float = 1.0, material: int | None = None
    ) -> None:
        """A line of `width` pixels through the points."""
        self._paint("line", points, colour, material, opacity, width=max(1, round(width * _SCALE)))

    def dot(self, centre: Points, radius: float, colour: Colour, material: int) -> None:
        """A filled circle."""
        self._paint("ellipse", np.stack([centre - radius, centre + radius]), colour, material)

    def _paint(
        self, shape: str, points: Points, colour: Colour, material: int | None, opacity: float = 1.0, **options: Any
    ) -> None:
        corners = (points * _SCALE).ravel().tolist()
        draw, ink = (self._blend, (*colour, round(255 * opacity))) if opacity < 1 else (self._draw, colour)
        getattr(draw, shape)(corners, fill=ink, **options)
        if material is not None:
            getattr(self._draw_material, shape)(corners, fill=material, **options)

    def colours(self, coverage: Pixels) -> Pixels:
        """(3, HEIGHT, WIDTH): red, green and blue in [0, 255], times the coverage."""
        planes = np.asarray(self._colours.reduce(_SCALE)).transpose(2, 0, 1)
        whole: Pixels = np.minimum(planes.astype(np.float32), np.float32(255) * coverage)
        return whole  # lines may stick out of the figure by a pixel

    def materials(self) -> tuple[Pixels, Pixels, Pixels]:
        """The shares, in [0, 1], of skin, of hair and of the whole figure in each pixel."""
        columns = np.asarray(self._materials).astype(np.uint16).reshape(HEIGHT, _SCALE, WIDTH, _SCALE)
        codes = columns[:, 0, :, 0] + columns[:, 0, :, 1] + columns[:, 1, :, 0] + columns[:, 1, :, 1]
        skin, hair, other = codes & 7, (codes >> 3) & 7, codes >> 6
        part = np.float32(1 / _SCALE**2)
        return skin * part, hair * part, (skin + hair + other) * part


def glow(spots: Points) -> Pixels:
    """The sum of soft spots: (K, 5) rows of x, y, radius across, radius down, amount.

    A spot is a Gaussian; its radii are standard deviations in pixels, its amount is its height.
    """
    x, y, across, down, amount = spots.astype(np.float32).T[:, :, None]
    rows, columns = (ROWS - y) / down, (COLUMNS - x) / across
    rows, columns = amount * np.exp(rows * rows * np.float32(-0.5)), np.exp(columns * columns * np.float32(-0.5))
    field = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    windows = zip(_window(y, down, HEIGHT), _window(x, across, WIDTH), strict=True)
    for row, column, (below, beside) in zip(rows, columns, windows, strict=True):
        field[below, beside] += row[below, None] * column[beside]
    return field


def _window(centres: Pixels, radii: Pixels, size: int) -> list[slice]:
    """Three deviations are enough to see."""
    first = np.clip(centres - 3 * radii, 0, size).astype(int).ravel()
    last = np.clip(centres + 3 * radii + 1, 0, size).astype(int).ravel()
    return [slice(*ends) for ends in zip(first.tolist(), last.tolist(), strict=True)]


def circle(count: int) -> Points:
    """(count, 2): corners of a polygon in the unit circle, from the right over the bottom."""
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def smooth(points: Points, count: int = 6) -> Points:
    """A closed Catmull-Rom curve through the points, `count` points for each segment."""
    t = (np.arange(count) / count)[None, :, None]
    before, here, after, beyond = (np.roll(points, shift, axis=0)[:, None, :] for shift in (1, 0, -1, -2))
    curve = here + 0.5 * t * (
        (after - before) + t * (2 * before - 5 * here + 4 * after - beyond + t * (3 * (here - after) + beyond - before))
    )
    return curve.reshape(-1, 2)
