"""A small canvas for painted faces: antialiased flat shapes, and soft light on top of them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.data.painted.head import HEIGHT, WIDTH, Points

Colour = tuple[int, int, int]
Field = NDArray[np.float32]  # (HEIGHT, WIDTH): one number for each pixel

SKIN: Colour = (255, 0, 255)
HAIR: Colour = (0, 255, 255)
OTHER: Colour = (0, 0, 255)

_SCALE = 2  # supersampling of the shapes
_COLUMNS = np.arange(WIDTH, dtype=np.float32) + 0.5
_ROWS = np.arange(HEIGHT, dtype=np.float32) + 0.5


class Canvas:
    """Flat shapes over nothing, with what each pixel is made of: skin, hair or other.

    Its buffers are most of what a picture costs to allocate, so one canvas may be used for many pictures in turn.
    """

    def __init__(self) -> None:
        size = (WIDTH * _SCALE, HEIGHT * _SCALE)
        # Black under the shapes: reducing then gives colours already multiplied by coverage.
        self._colours, self._materials = Image.new("RGB", size), Image.new("RGB", size)
        self._draw, self._draw_material = ImageDraw.Draw(self._colours), ImageDraw.Draw(self._materials)
        self._blend = ImageDraw.Draw(self._colours, "RGBA")  # slower, and only needed below full opacity
        self._planes = np.empty((5, 3, HEIGHT, WIDTH), dtype=np.float32)

    def clear(self) -> None:
        """Remove every shape."""
        for picture in (self._colours, self._materials):
            picture.paste((0, 0, 0), (0, 0, *picture.size))

    def fill(self, points: Points, colour: Colour, material: Colour | None = None, opacity: float = 1.0) -> None:
        """Fill a polygon; without `material` the pixels keep theirs, so it must lie inside of the figure."""
        flat = (points * _SCALE).ravel().tolist()
        if opacity < 1:
            self._blend.polygon(flat, fill=(*colour, round(255 * opacity)))
        else:
            self._draw.polygon(flat, fill=colour)
        if material is not None:
            self._draw_material.polygon(flat, fill=material)

    def line(
        self, points: Points, colour: Colour, width: float, opacity: float = 1.0, material: Colour | None = None
    ) -> None:
        """A line of `width` pixels through the points; as in `fill`, without `material` inside of the figure only."""
        flat = (points * _SCALE).ravel().tolist()
        draw, ink = (self._blend, (*colour, round(255 * opacity))) if opacity < 1 else (self._draw, colour)
        thickness = max(1, round(width * _SCALE))
        draw.line(flat, fill=ink, width=thickness)
        if material is not None:
            self._draw_material.line(flat, fill=material, width=thickness)

    def dot(self, centre: Points, radius: float, colour: Colour, material: Colour | None = None) -> None:
        """A filled circle."""
        x, y = float(centre[0]) * _SCALE, float(centre[1]) * _SCALE
        box = (x - radius * _SCALE, y - radius * _SCALE, x + radius * _SCALE, y + radius * _SCALE)
        self._draw.ellipse(box, fill=colour)
        if material is not None:
            self._draw_material.ellipse(box, fill=material)

    def colours(self) -> NDArray[np.float32]:
        """(3, HEIGHT, WIDTH): red, green and blue in [0, 255], times the coverage."""
        return self.planes(self._colours.reduce(_SCALE), 0)

    def materials(self) -> NDArray[np.float32]:
        """(3, HEIGHT, WIDTH): the shares, in [0, 1], of skin, of hair and of the whole figure in each pixel."""
        shares = self.planes(self._materials.reduce(_SCALE), 1)
        shares *= np.float32(1 / 255)
        return shares

    def planes(self, picture: Image.Image, buffer: int = 2) -> NDArray[np.float32]:
        """(3, HEIGHT, WIDTH): a picture's colour planes; broadcasting over them is far faster than over (..., 3)."""
        planes: NDArray[np.float32] = self._planes[buffer]
        np.copyto(planes, np.asarray(picture).transpose(2, 0, 1))
        return planes

    def scratch(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Two times (3, HEIGHT, WIDTH): room to compute in, with anything in it."""
        return self._planes[3], self._planes[4]


def glow(spots: Points, field: Field) -> Field:
    """Make `field` the sum of soft spots, (K, 5) rows of x, y, radius across, radius down, amount.

    A spot is a Gaussian; its radii are standard deviations in pixels, its amount is its height.
    """
    x, y, across, down, amount = (np.asarray(column, np.float32)[:, None] for column in spots.T)
    rows, columns = (_ROWS - y) / down, (_COLUMNS - x) / across
    rows, columns = amount * np.exp(rows * rows * np.float32(-0.5)), np.exp(columns * columns * np.float32(-0.5))
    # Three deviations are enough to see.
    tops, bottoms = _window(y, down, HEIGHT)
    lefts, rights = _window(x, across, WIDTH)
    field.fill(0)
    for k, (top, bottom, left, right) in enumerate(zip(tops, bottoms, lefts, rights, strict=True)):
        field[top:bottom, left:right] += rows[k, top:bottom, None] * columns[k, left:right]
    return field


def _window(centres: Field, radii: Field, size: int) -> tuple[list[int], list[int]]:
    first = np.minimum(np.maximum(centres - 3 * radii, 0), size)
    last = np.minimum(np.maximum(centres + 3 * radii + 1, 0), size)
    return first.astype(int).ravel().tolist(), last.astype(int).ravel().tolist()


def ball_light(centre: Points, radius: tuple[float, float], direction: tuple[float, float, float]) -> Field:
    """Light in [-1, 1] on a ball seen from the front; `direction` is a unit vector to the light: right, down, near."""
    across = np.clip((_COLUMNS - np.float32(centre[0])) / np.float32(radius[0]), -1, 1)
    down = np.clip((_ROWS - np.float32(centre[1])) / np.float32(radius[1]), -1, 1)
    near: Field = (1 - down * down)[:, None] - (across * across)[None, :]
    np.sqrt(np.maximum(near, np.float32(0.04), out=near), out=near)
    near *= np.float32(direction[2])
    near += (across * np.float32(direction[0]))[None, :]
    near += (down * np.float32(direction[1]))[:, None]
    return near


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
