"""The features of a painted face: eyes, brows, nose, mouth, beard and glasses."""

import math

import numpy as np

from pipeline.data.synth.canvas import HAIR, OTHER, Canvas, circle, smooth
from pipeline.data.synth.colours import WHITE, Colour, mixed, ramp, scaled
from pipeline.data.synth.factors import Factors
from pipeline.data.synth.hair import hair_colour
from pipeline.data.synth.head import Head, Points, mouth_line

_ALONG = np.linspace(-1, 1, 17)
_SIDES = np.array([[-1.0], [1.0]])
_CURVE = 1 - np.abs(_ALONG) ** 2.3  # from corner to corner
_LASHES = np.clip(0.5 + 0.5 * _SIDES * _ALONG, 0, 1)[..., None] * np.array([0.0, 1.0])
_BROW = np.clip(1.05 - 0.45 * (_ALONG + 1) ** 1.5 / 1.6, 0.15, 1) * np.minimum(1, (_ALONG + 1.25) / 0.4)
_ROUNDED = 1 - np.abs(_ALONG) ** 2.2
_BOW = 1 - 0.32 * np.exp(-((_ALONG / 0.16) ** 2))
_LID = np.array([0.0, 1.3]) * (1 - np.abs(_ALONG))[:, None]
_CIRCLE, _LENS = circle(20), circle(28)
_NINE = np.linspace(0, 1, 9)
_BEND = np.sin(_NINE * math.pi)
_NOSTRILS = np.stack([2.3 * _CIRCLE[:, 0] + 0 * _SIDES, (1.15 + 0.3 * _SIDES * _CIRCLE[:, 0]) * _CIRCLE[:, 1]], axis=-1)
_EYE_RADII = np.array([5.5, 4.9, 2.6, 1.05])  # rim, iris, pupil, glint
_IRIS = ((58, 36, 24), (104, 66, 36), (118, 104, 54), (74, 120, 78), (74, 124, 172), (130, 150, 164))
_RIMS: tuple[Colour, ...] = ((28, 26, 30), (92, 58, 36), (190, 156, 84), (150, 36, 44))


def paint_eyes(canvas: Canvas, head: Head, factors: Factors, skin: Colour) -> None:
    """Whites, irises and lids of both eyes."""
    half = 10.7 + 1.3 * factors.eye_size
    above = (3.2 + 4.0 * factors.eye_openness) * (1 + 0.1 * factors.eye_size)
    below = 2.0 + 2.2 * factors.eye_openness
    iris = ramp(_IRIS, factors.eye_colour)
    lines = np.stack([-above * _CURVE, below * (1 - _ALONG * _ALONG), -(above + 2.6) * (0.15 + 0.85 * _CURVE)])
    tilts = -(0.4 + 1.6 * factors.eye_tilt) * _SIDES * _ALONG
    eyes = head.on_face((_SIDES * head.eye_u + half * _ALONG)[:, None], lines + tilts[:, None], 1.0)
    middles = head.on_face(_SIDES[:, 0] * head.eye_u, np.zeros(2))
    to_glint = np.array([[0.0, 0.0]] * 3 + [[1.4 if factors.light_x > 0 else -1.4, -1.5]])
    circles = (to_glint[:, None] + _EYE_RADII[:, None, None] * _CIRCLE)[None] + middles[:, None, None]
    lash = np.array([0.0, 1.0])
    for (upper, lower, crease), disc, thickness in zip(eyes, circles, 0.5 * lash + 0.9 * _LASHES, strict=True):
        canvas.band(upper, lower, (243, 240, 238))
        discs = _between(disc, upper, lower)
        for shape, colour in zip(discs, (scaled(iris, 0.6), iris, (16, 12, 14), WHITE), strict=True):
            canvas.fill(shape, colour)
        canvas.fill(np.concatenate([upper, (upper + _LID)[::-1]]), (40, 26, 26), opacity=0.35)  # the lid's shadow
        canvas.fill(np.concatenate([upper - thickness, upper[::-1] + 0.35 * thickness[::-1]]), (40, 26, 24))
        canvas.line(lower, scaled(skin, 0.66), 0.6, 0.7)
        canvas.line(crease[1:-1], scaled(skin, 0.68), 0.8, 0.6)


def paint_brows(canvas: Canvas, head: Head, factors: Factors) -> None:
    """Eyebrows, darker than the hair and tapered outwards."""
    colour = scaled(hair_colour(factors), 0.72 if factors.hair_colour != "blond" else 0.62)
    thickness = 1.4 + 2.6 * factors.brow_thickness
    u = _SIDES * (head.eye_u + 0.5 + 11.5 * _ALONG)  # -1 is the inner end
    arch = (2.0 + 2.6 * max(0.0, factors.brow_arch + 0.4)) * (1 - (_ALONG - 0.1) ** 2 / 2.2)
    v, body = -14.8 - 0.6 * factors.brow_thickness - arch, thickness * _BROW
    for upper, lower in head.on_face(u[:, None], np.stack([v - 0.5 * body, v + 0.5 * body])):
        canvas.band(upper, lower, colour, opacity=0.9)


def paint_nose(canvas: Canvas, head: Head, factors: Factors, skin: Colour) -> None:
    """Nostrils, wings and the shaded side of the bridge; its roundness comes with the light."""
    wing = 8.6 + 1.9 * factors.nose_width
    base, dark = head.nose_v + 3.2, scaled(skin, 0.62)
    u = _SIDES * (wing - 1.6 + 1.8 * _BEND)
    wings = head.place(u, base - 6.5 + 7.0 * _NINE, 42.0 - 2 * _BEND)
    nostrils = head.place(_SIDES * 0.47 * wing, base + 0.6, 47.0)
    turns = _NOSTRILS * (0.85 + 0.15 * factors.nose_width)
    for edge, nostril in zip(wings, nostrils + turns, strict=True):
        canvas.line(edge, dark, 0.9, 0.55)
        canvas.fill(nostril, scaled(skin, 0.42), opacity=0.85)
    under = head.place(0.6 * wing * _ALONG, base + 1.8 - 2.0 * _ALONG * _ALONG, 49.0 - 3 * _ALONG * _ALONG)
    canvas.line(under, dark, 0.8, 0.5)
    side = 1.0 if factors.light_x < 0 else -1.0
    ridge = head.place(side * (3.4 + 1.2 * _NINE), -4.0 + (head.nose_v - 2) * _NINE, 42.0 + 5 * _NINE)
    canvas.line(ridge, scaled(skin, 0.8), 0.9, 0.3 + 0.25 * abs(factors.light_x))


def paint_mouth(canvas: Canvas, head: Head, factors: Factors, skin: Colour) -> None:
    """Lips, and teeth where the mouth is open."""
    natural = mixed(scaled(skin, 0.86), (188, 76, 82), 0.5)
    lips = mixed(natural, (184, 24, 58), 0.85 * factors.lipstick)
    fullness = 1 + 0.32 * factors.lip_fullness
    opening = 7.5 * factors.mouth_open * _ROUNDED
    gaps = np.stack([-0.25 * opening, 0.75 * opening])
    full = fullness * _ROUNDED
    lines = np.stack([gaps[0] - 4.3 * full * _BOW, gaps[0], gaps[1], gaps[1] + 5.4 * full])
    top, gap_top, gap_bottom, bottom = mouth_line(head, _ALONG, lines)
    canvas.band(top, gap_top, scaled(lips, 0.88))
    canvas.band(gap_bottom, bottom, lips)
    shine = mouth_line(head, 0.5 * _ALONG, 0.75 * opening + 2.6 * fullness)
    canvas.line(shine, mixed(lips, WHITE, 0.35), 1.1, 0.35 + 0.35 * factors.lipstick)
    if factors.mouth_open > 0:
        canvas.band(gap_top, gap_bottom, (84, 26, 30))
        edges = np.stack([-0.25 * opening, np.minimum(-0.25 * opening + 3.4, 0.6 * opening) * _ROUNDED])
        upper, teeth = mouth_line(head, 0.86 * _ALONG, edges)
        canvas.band(upper, teeth, (246, 242, 236))
    canvas.line(gap_top, scaled(lips, 0.55), 0.9, 0.8)
    for corner in top[[0, -1]] + np.array([0.0, -0.2]):
        canvas.fill(corner + 1.1 * _CIRCLE, scaled(skin, 0.6), opacity=0.6)
    if factors.smile > 0.2:
        u = _SIDES * (11.0 + (head.mouth_u - 6.0) * _NINE + 1.5 * _BEND)
        for fold in head.on_face(u, head.nose_v + 1.0 + (head.mouth_v - head.nose_v - 3.0) * _NINE):
            canvas.line(fold, scaled(skin, 0.72), 0.9, 0.45 * factors.smile)


def paint_beard(canvas: Canvas, head: Head, factors: Factors) -> None:
    """Stubble, moustache, goatee or full beard, under the lips."""
    if factors.beard == "none":
        return
    colour = mixed(scaled(hair_colour(factors), 0.78), (70, 48, 38), 0.25)
    if factors.beard in ("stubble", "full"):
        grow, material, opacity = (3.5, HAIR, 0.94) if factors.beard == "full" else (-0.5, None, 0.28)
        rim = head.outline(np.linspace(math.pi - 0.1, 0.1, 41))
        rim = rim + np.array([0.0, 1.0]) * (grow * np.sin(np.linspace(0, math.pi, 41)))[:, None]
        u = np.array([0.97, 0.88, 0.76, 0.58, 0.36, 0.16, 0.0]) * head.half_width
        v = np.array([6.0, 16.0, 27.0, 33.0, head.nose_v + 7.0, head.nose_v + 6.0, head.nose_v + 7.5])
        edge = head.on_face(np.concatenate([u, -u[-2::-1]]), np.concatenate([v, v[-2::-1]]))
        canvas.fill(np.concatenate([rim, edge]), colour, material, opacity)
        return
    lift, droop = head.nose_v + 6.0, (5.0 if factors.beard == "moustache" else 2.0) * _ALONG**2
    edges = np.stack([lift + droop + 0.8 * np.exp(-((_ALONG / 0.15) ** 2)), lift + 6.0 + droop - 3.5 * _ALONG**4])
    top, low = head.place(15.0 * _ALONG, edges, 46.0 - 6 * _ALONG**2)
    canvas.band(top, low, colour, HAIR, 0.93)
    if factors.beard == "goatee":
        start = head.mouth_v + 9.0 + factors.lip_fullness
        across, end = np.array([-4.0, 4.0, 12.0, 14.0, 11.0, 0.0, -11.0, -14.0, -12.0]), head.chin
        down = np.array([start, start, start + 3, start + 9, end - 2, end + 3, end - 2, start + 9, start + 3])
        canvas.fill(smooth(head.on_face(across, np.minimum(down, end + 3))), colour, HAIR, 0.93)


def paint_glasses(canvas: Canvas, head: Head, factors: Factors) -> None:
    """Spectacles or sunglasses, a little before the eyes."""
    if factors.glasses == "none":
        return
    rim = ramp(_RIMS, factors.glasses_tone)
    power = {"round": 1.0, "square": 0.5, "sunglasses": 0.7}[factors.glasses]
    across, down = (13.2, 12.2) if factors.glasses == "round" else (15.2, 11.2)
    shape_u, shape_v = (np.array([across, down]) * np.sign(_LENS) * np.abs(_LENS) ** power).T
    width = 1.5 if factors.glasses == "round" else 2.0
    for side in (-1.0, 1.0):
        u = side * (head.eye_u + 0.5) + shape_u
        lens = head.place(u, shape_v + 1.0, 44.0 - 0.006 * u * u)
        if factors.glasses == "sunglasses":
            canvas.fill(lens, mixed((24, 22, 30), rim, 0.2), OTHER, 0.93)
            glare = head.place(side * head.eye_u - 5 + 0.3 * shape_u, 0.45 * shape_v - 3.0, 44.0)
            canvas.fill(glare, WHITE, opacity=0.12)
        else:
            canvas.fill(lens, (235, 245, 255), opacity=0.1)
        canvas.line(np.concatenate([lens, lens[:2]]), rim, width, material=OTHER)
        hinge = head.place(side * (head.eye_u + 0.5 + across), -2.0, 44.0 - 0.006 * (head.eye_u + across) ** 2)
        ear = head.on_face(side * head.half_width * 0.99, -5.0)
        canvas.line(np.stack([hinge, ear]), rim, width, material=OTHER)
    gap = head.eye_u + 0.5 - across
    bridge = head.place(gap * _ALONG, -2.0 - 1.5 * (1 - _ALONG**2), 47.0)
    canvas.line(bridge, rim, width, material=OTHER)


def _between(shapes: Points, upper: Points, lower: Points) -> Points:
    """The shapes, cut to what lies between two lids, both given from left to right."""
    x = np.minimum(np.maximum(shapes[..., 0], upper[0, 0]), upper[-1, 0])
    top, bottom = np.interp(x, upper[:, 0], upper[:, 1]), np.interp(x, lower[:, 0], lower[:, 1])
    return np.stack([x, np.minimum(np.maximum(shapes[..., 1], top), np.maximum(top, bottom))], axis=-1)
