"""The hair of a painted face: what hangs behind the head, and what covers its top."""

import math

import numpy as np

from pipeline.data.synth.canvas import HAIR, Canvas, smooth
from pipeline.data.synth.colours import Colour, scaled
from pipeline.data.synth.factors import COILED_STYLES, LONG_STYLES, Factors
from pipeline.data.synth.head import Head, Points

_COLOURS: dict[str, Colour] = {
    "black": (42, 36, 38),
    "brown": (98, 62, 40),
    "blond": (210, 176, 124),
    "red": (152, 78, 50),
    "gray": (164, 162, 162),
}
_ALONG = np.linspace(-1, 1, 41)  # along the hairline, from the left ear to the right one
_SIDE: dict[str, float] = {"buzz": 2, "short": 8, "side_part": 8, "quiff": 4, "fringe": 12, "curly": 8, "bun": 0}


def hair_colour(factors: Factors) -> Colour:
    """The hair's base colour."""
    return scaled(_COLOURS[factors.hair_colour], 1 + 0.25 * factors.hair_shade)


def paint_back_hair(canvas: Canvas, head: Head, factors: Factors) -> None:
    """Hair behind the head and the body; to be painted first."""
    style, volume, colour = factors.hair_style, factors.hair_volume, scaled(hair_colour(factors), 0.72)
    if style in LONG_STYLES:
        canvas.fill(_hanging(head, factors), colour, HAIR)
    elif style in COILED_STYLES:
        reach = 9 + 7 * volume if style == "curly" else 15 + 13 * volume
        _paint_curls(canvas, head, factors, reach, colour, (0.55, 1.0))
    elif style == "bun":
        centre = head.behind(8 * factors.hair_parting, head.top - 14.0)
        canvas.dot(centre, 15 + 4 * volume, scaled(colour, 1.15), HAIR)
        arc = np.linspace(-1.0, 1.0, 9)
        for turn in (-0.6, 0.0, 0.6):
            bend = np.stack([arc * 12, 10 * turn + 6 * turn * arc * arc - 3.0], axis=-1)
            canvas.line(centre + bend, scaled(colour, 0.75), 0.9, 0.6)


def paint_front_hair(canvas: Canvas, head: Head, factors: Factors) -> None:
    """Hair over the head; to be painted after the face."""
    if factors.hair_style == "bald":
        return
    colour = hair_colour(factors)
    inner, outer = _hairline(head, factors), _crown(head, factors)
    if factors.hair_style == "buzz":
        # Shaved sides let the skin shine through.
        canvas.band(inner, outer, colour, HAIR, 0.82)
        return
    shadow = inner + np.array([0.6 - 1.5 * factors.light_x, 2.6])
    canvas.fill(np.concatenate([shadow[::2], inner[::-2]]), (70, 30, 20), opacity=0.2)
    canvas.band(inner, outer, colour, HAIR)
    # Where a turned head's hairline lies behind its rim the first shape crosses itself: close the gap.
    rim = head.outline(_crown_angles(head, factors)[::2])
    canvas.fill(np.concatenate([rim, outer[::-2]]), colour, HAIR)
    if factors.hair_style in COILED_STYLES:
        reach = 5 + 5 * factors.hair_volume if factors.hair_style == "curly" else 10 + 12 * factors.hair_volume
        _paint_curls(canvas, head, factors, reach, colour, (0.3, 0.8))
    else:
        _paint_strands(canvas, factors, inner, outer, colour)


def _hairline(head: Head, factors: Factors) -> Points:
    """The lower edge of the hair from the left side over the forehead to the right side."""
    style, part = factors.hair_style, 0.55 * factors.hair_parting
    size = np.abs(_ALONG)
    side = _SIDE.get(style, 26.0)  # down to here at the ears
    if style in LONG_STYLES:
        # Two curtains which part above the forehead.
        away = np.abs(_ALONG - part) / (1 + abs(part))
        v = -46 + (side + 46) * np.clip(away, 0, 1) ** 2.3
    elif style == "side_part":
        # Sweeps from the parting down to the other side.
        side_of_part = 0.5 if part >= 0 else -0.5
        away = np.clip((side_of_part - _ALONG) * np.sign(side_of_part) / 1.5, 0, 1)
        v = np.maximum(-46 + 22 * np.sqrt(away), -46 + (side + 46) * size**5)
    elif style == "fringe":
        v = np.maximum(-20.0 - 3 * size + 3 * part * _ALONG, -20 + (side + 20) * size**7)
        v = v + 1.6 * np.sin(9 * np.pi * _ALONG + factors.texture % 7) * (size < 0.8)
    else:
        peak = 2.5 * factors.hair_parting * np.exp(-((_ALONG / 0.22) ** 2))
        v = -41.0 + (side + 41.0) * size ** (2.4 + 1.2) + peak
        if style == "quiff":
            v = v - 5 * np.exp(-(((size - 0.5) / 0.22) ** 2))
    u = head.half_width * np.sin(_ALONG * np.pi / 2 * 0.98) * (1.0 if style in LONG_STYLES else 0.985)
    return head.on_face(u, v)


def _crown(head: Head, factors: Factors) -> Points:
    """The upper edge of the hair, from the left side over the top to the right side."""
    style, volume = factors.hair_style, factors.hair_volume
    reaches = {"buzz": 1.2, "short": 3 + 4 * volume, "fringe": 4 + 4 * volume, "bun": 2.0 + 2 * volume}
    reach = reaches.get(style, 5 + 5 * volume)
    angles = _crown_angles(head, factors)
    flat = 1 - 0.55 * np.abs(_ALONG) ** 3 if style not in LONG_STYLES else np.ones_like(_ALONG)
    rise = np.zeros_like(_ALONG)
    if style == "quiff":
        rise = (5 + 6 * volume) * np.exp(-(((_ALONG - 0.25 * factors.hair_parting) / 0.5) ** 2))
    elif style == "side_part":
        rise = (2 + 4 * volume) * np.exp(-(((_ALONG + 0.5 * np.sign(factors.hair_parting)) / 0.5) ** 2))
    return _around(head, angles, reach * flat + rise)


def _crown_angles(head: Head, factors: Factors) -> Points:
    """The outline's angles which the hair covers."""
    end = math.asin(min(0.95, _SIDE.get(factors.hair_style, 26.0) / head.chin))  # of the lower ends
    return np.linspace(math.pi - end, 2 * math.pi + end, _ALONG.size)


def _around(head: Head, angles: Points, distance: Points | float) -> Points:
    """The head's outline at these angles, moved away from the head."""
    outward = np.stack([np.cos(angles), np.sin(angles)])
    return head.outline(angles) + (outward * distance).T


def _hanging(head: Head, factors: Factors) -> Points:
    """Outline of the hair which hangs behind the face."""
    volume, style = factors.hair_volume, factors.hair_style
    length = {"bob": 62.0 + 8 * volume, "long": 125.0, "wavy": 118.0}[style]
    angles = np.linspace(math.pi, 2 * math.pi, 15)
    top = _around(head, angles, 5 + 5 * volume)
    v = np.linspace(6.0, length, 12)
    width = head.half_width + 6 + 7 * volume + (6 * np.sin((v - 6) / (length - 6) * 2.2) if style != "bob" else 4.0)
    if style == "wavy":
        width = width + (2.5 + 2 * volume) * np.sin(v / 6.5 + factors.texture % 6)
    if style == "bob":
        width = width - 8 * np.clip((v - 45) / 25, 0, 1) ** 2
    right, left = head.behind(width, v), head.behind(-width, v)
    return smooth(np.concatenate([top, right, left[::-1]]), 3 if style == "wavy" else 2)


def _paint_strands(canvas: Canvas, factors: Factors, inner: Points, outer: Points, colour: Colour) -> None:
    """Light and dark strands, along the hairline where the hair is combed so, from crown to edge otherwise."""
    tones = np.random.default_rng(factors.texture).uniform(-1, 1, 16)
    if factors.hair_style in ("fringe", "quiff", "bun", "short"):
        share, contrast, width = np.linspace(0.08, 0.92, 4)[:, None], 0.12, 1.2
        low = np.linspace(2, len(inner) - 3, len(tones)).astype(int)
        high = low + np.rint(0.25 * (len(inner) // 2 - low)).astype(int)  # the strands meet towards the crown
        paths = inner[low, None] + share * (outer[high] - inner[low])[:, None]
    else:
        share, contrast, width, tones = np.linspace(0.08, 0.92, 9)[:, None, None], 0.13, 1.3, tones[:9]
        paths = (1 - share) * inner[::2] + share * outer[::2]
    for tone, path in zip(tones.tolist(), paths, strict=True):
        canvas.line(path, scaled(colour, 1 + contrast * tone), width)


def _paint_curls(
    canvas: Canvas, head: Head, factors: Factors, reach: float, colour: Colour, rows: tuple[float, ...]
) -> None:
    """Rows of round curls along the head's outline; a row is at a share of `reach` outside of it."""
    generator, count = np.random.default_rng(factors.texture), 22
    end = 0.2 if factors.hair_style == "curly" else 0.55
    for row in rows:
        angles = np.linspace(math.pi - end, 2 * math.pi + end, count) + generator.uniform(-0.05, 0.05, count)
        centres = _around(head, angles, reach * row)
        sizes, tones = generator.uniform(0.75, 1.15, count).tolist(), generator.uniform(-1, 1, count).tolist()
        for centre, size, tone in zip(centres, sizes, tones, strict=True):
            canvas.dot(centre, (5.5 + 0.22 * reach) * size, scaled(colour, 1 + 0.13 * tone), HAIR)
