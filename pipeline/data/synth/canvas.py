"""A small canvas for painted faces: antialiased flat shapes, and soft light on top of them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.data.synth.head import HEIGHT, WIDTH, Points

Colour = tuple[int, int, int]
Planes = NDArray[np.float32]  # (channels, HEIGHT, WIDTH)
Field = NDArray[np.float32]  # (HEIGHT, WIDTH): one number for each pixel

# What a pixel is made of. The sum of four codes tells how many of the four are skin, hair and other: its digits to
# base 8, from the lowest.
SKIN, HAIR, OTHER = 1, 8, 64

_SCALE = 2  # supersampling of the shapes
_COLUMNS = np.arange(WIDTH, dtype=np.float32) + 0.5
_ROWS = np.arange(HEIGHT, dtype=np.float32) + 0.5


class Canvas:
    """Flat shapes over nothing, with what each pixel is made of: skin, hair or other.

    Its buffers are most of what a picture costs to allocate, so one canvas may be used for many pictures in turn.
    """

    def __init__(self) -> None:
        # glibc gives memory back to the system, to fault it in again for the next picture, unless as large a block
        # has been freed before.
        np.empty(1 << 23, dtype=np.uint8)
        size = (WIDTH * _SCALE, HEIGHT * _SCALE)
        # Black under the shapes: reducing then gives colours already multiplied by coverage.
        self._colours, self._materials = Image.new("RGB", size), Image.new("L", size)
        self._draw, self._draw_material = ImageDraw.Draw(self._colours), ImageDraw.Draw(self._materials)
        self._blend = ImageDraw.Draw(self._colours, "RGBA")  # slower, and only needed below full opacity
        self._planes = np.empty((4, 3, HEIGHT, WIDTH), dtype=np.float32)
        self.backdrop = np.empty((3, HEIGHT + 1, WIDTH + 2), dtype=np.float32)  # room for one: multiples of three
        self._shares = np.empty((3, HEIGHT, WIDTH), dtype=np.float32)

    def clear(self) -> None:
        """Remove every shape."""
        box = (0, 0, *self._colours.size)
        self._colours.paste((0, 0, 0), box)
        self._materials.paste(0, box)

    def fill(self, points: Points, colour: Colour, material: int | None = None, opacity: float = 1.0) -> None:
        """Fill a polygon; without `material` the pixels keep theirs, so it must lie inside of the figure."""
        corners = (points * _SCALE).ravel().tolist()
        if opacity < 1:
            self._blend.polygon(corners, fill=(*colour, round(255 * opacity)))
        else:
            self._draw.polygon(corners, fill=colour)
        if material is not None:
            self._draw_material.polygon(corners, fill=material)

    def line(
        self, points: Points, colour: Colour, width: float, opacity: float = 1.0, material: int | None = None
    ) -> None:
        """A line of `width` pixels through the points; as in `fill`, without `material` inside of the figure only."""
        corners = (points * _SCALE).ravel().tolist()
        draw, ink = (self._blend, (*colour, round(255 * opacity))) if opacity < 1 else (self._draw, colour)
        thickness = max(1, round(width * _SCALE))
        draw.line(corners, fill=ink, width=thickness)
        if material is not None:
            self._draw_material.line(corners, fill=material, width=thickness)

    def dot(self, centre: Points, radius: float, colour: Colour, material: int | None = None) -> None:
        """A filled circle."""
        x, y = float(centre[0]) * _SCALE, float(centre[1]) * _SCALE
        box = (x - radius * _SCALE, y - radius * _SCALE, x + radius * _SCALE, y + radius * _SCALE)
        self._draw.ellipse(box, fill=colour)
        if material is not None:
            self._draw_material.ellipse(box, fill=material)

    def colours(self, coverage: Field) -> Planes:
        """(3, HEIGHT, WIDTH): red, green and blue in [0, 255], times the coverage."""
        planes: Planes = self._planes[0]
        picture = self._colours.reduce(_SCALE)
        for plane, band in zip(planes, "RGB", strict=True):
            plane[:] = np.frombuffer(picture.tobytes("raw", band), np.uint8).reshape(HEIGHT, WIDTH)
        whole = flat(planes)
        np.minimum(whole, flat(np.float32(255) * coverage), out=whole)  # lines may stick out by a pixel
        return planes

    def materials(self) -> tuple[Field, Field, Field]:
        """The shares, in [0, 1], of skin, of hair and of the whole figure in each pixel."""
        # Two pixels of a row are one number here: no sum of two codes runs over its byte.
        pairs = np.frombuffer(self._materials.tobytes(), np.uint16).reshape(HEIGHT, _SCALE, WIDTH)
        columns = pairs[:, 0] + pairs[:, 1]
        codes = (columns & 255) + (columns >> 8)
        skin, hair = codes & 7, (codes >> 3) & 7
        for share, counts in zip(self._shares, (skin, hair, skin + hair + (codes >> 6)), strict=True):
            np.multiply(counts, np.float32(1 / _SCALE**2), out=share)
        return self._shares[0], self._shares[1], self._shares[2]

    def scratch(self) -> tuple[Planes, Planes, Planes]:
        """Three times (3, HEIGHT, WIDTH): room to compute in, with anything in it."""
        return self._planes[1], self._planes[2], self._planes[3]


def flat(planes: Planes) -> Planes:
    """The same pixels in one row for each plane, or in one row: broadcasting over long rows is far faster."""
    row: Planes = planes.reshape(*planes.shape[:-2], HEIGHT * WIDTH)
    return row


def glow(spots: Points, fields: list[Field]) -> None:
    """Add soft spots, (K, 5) rows of x, y, radius across, radius down, amount, each to its field.

    A spot is a Gaussian; its radii are standard deviations in pixels, its amount is its height.
    """
    x, y, across, down, amount = spots.astype(np.float32).T[:, :, None]
    rows, columns = (_ROWS - y) / down, (_COLUMNS - x) / across
    rows, columns = amount * np.exp(rows * rows * np.float32(-0.5)), np.exp(columns * columns * np.float32(-0.5))
    # Three deviations are enough to see.
    tops, bottoms = _window(y, down, HEIGHT)
    lefts, rights = _window(x, across, WIDTH)
    windows = zip(tops, bottoms, lefts, rights, strict=True)
    for field, row, column, (top, bottom, left, right) in zip(fields, rows, columns, windows, strict=True):
        field[top:bottom, left:right] += row[top:bottom, None] * column[left:right]


def _window(centres: Field, radii: Field, size: int) -> tuple[list[int], list[int]]:
    first = np.minimum(np.maximum(centres - 3 * radii, 0), size)
    last = np.minimum(np.maximum(centres + 3 * radii + 1, 0), size)
    return first.astype(int).ravel().tolist(), last.astype(int).ravel().tolist()


def ball_light(
    centre: Points, radius: tuple[float, float], direction: tuple[float, float, float], contrast: float, base: float
) -> Field:
    """`base` and, times `contrast`, light in [-1, 1] on a ball seen from the front.

    `direction` is a unit vector to the light: right, down, near.
    """
    across = np.clip((_COLUMNS - np.float32(centre[0])) / np.float32(radius[0]), -1, 1)
    down = np.clip((_ROWS - np.float32(centre[1])) / np.float32(radius[1]), -1, 1)
    light: Field = (1 - down * down)[:, None] - across * across
    np.sqrt(np.maximum(light, np.float32(0.04), out=light), out=light)
    right, below, near = (np.float32(contrast * part) for part in direction)
    light *= near
    light += (across * right)[None, :]
    light += (down * below + np.float32(base))[:, None]
    return light


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """`first`, with a share in [0, 1] of `second`."""
    keep = 1 - share
    return (
        round(keep * first[0] + share * second[0]),
        round(keep * first[1] + share * second[1]),
        round(keep * first[2] + share * second[2]),
    )


def scaled(colour: Colour, factor: float) -> Colour:
    """A darker (below 1) or lighter colour."""
    red, green, blue = colour
    return min(255, round(red * factor)), min(255, round(green * factor)), min(255, round(blue * factor))


def ramp(colours: tuple[Colour, ...], position: float) -> Colour:
    """The colour at `position` in [0, 1] of an evenly spaced ramp."""
    where = position * (len(colours) - 1)
    step = min(int(where), len(colours) - 2)
    return mixed(colours[step], colours[step + 1], where - step)


def smooth(points: Points, count: int = 6) -> Points:
    """A closed Catmull-Rom curve through the points, `count` points for each segment."""
    t = (np.arange(count) / count)[None, :, None]
    before, here, after, beyond = (np.roll(points, shift, axis=0)[:, None, :] for shift in (1, 0, -1, -2))
    curve = here + 0.5 * t * (
        (after - before) + t * (2 * before - 5 * here + 4 * after - beyond + t * (3 * (here - after) + beyond - before))
    )
    return curve.reshape(-1, 2)
