"""Paint one face from its factors: flat shapes from back to front, then light."""

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.data.painted.canvas import (
    OTHER,
    SKIN,
    Canvas,
    Colour,
    Field,
    ball_light,
    glow,
    mixed,
    ramp,
    scaled,
)
from pipeline.data.painted.factors import Factors
from pipeline.data.painted.features import paint_beard, paint_brows, paint_eyes, paint_glasses, paint_mouth, paint_nose
from pipeline.data.painted.hair import paint_back_hair, paint_front_hair
from pipeline.data.painted.head import HEIGHT, WIDTH, Head, Points, mouth_line, nose_tip

_SKIN_TONES: tuple[Colour, ...] = (
    (244, 214, 196),
    (234, 194, 168),
    (216, 168, 136),
    (180, 130, 100),
    (136, 94, 72),
    (98, 68, 54),
)
# How strongly shade takes each colour from skin: red stays longest.
_SHADE_OF_SKIN = np.array([0.82, 1.06, 1.16], dtype=np.float32)[:, None, None]
_BLUSH = np.array([0.05, -0.3, -0.24], dtype=np.float32)
_LIGHT_TINT = np.array([0.045, 0.0, -0.07], dtype=np.float32)[:, None, None]
_GRADIENT = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
_SMALL_GRADIENT = _GRADIENT.resize((60, 74))
_ROUND = np.linspace(0, 2 * math.pi, 72, endpoint=False)


def paint(factors: Factors, canvas: Canvas | None = None) -> Image.Image:
    """Paint a face: RGB, 178 x 218, and the same picture whenever the factors are the same.

    Args:
        factors: what to paint.
        canvas: one to paint over, which is faster than a new one; not by two threads at once.
    """
    head, skin = Head(factors), skin_colour(factors)
    if canvas is None:
        canvas = Canvas()
    else:
        canvas.clear()
    paint_back_hair(canvas, head, factors)
    _paint_body(canvas, head, factors, skin)
    _paint_ears(canvas, head, skin)
    canvas.fill(head.outline(_ROUND), skin, SKIN)
    paint_beard(canvas, head, factors)
    paint_nose(canvas, head, factors, skin)
    paint_mouth(canvas, head, factors, skin)
    paint_eyes(canvas, head, factors, skin)
    paint_brows(canvas, head, factors)
    paint_front_hair(canvas, head, factors)
    paint_glasses(canvas, head, factors)
    return _lit(canvas, head, factors)


def skin_colour(factors: Factors) -> Colour:
    """The skin's base colour, a continuous tone."""
    red, green, blue = ramp(_SKIN_TONES, factors.skin_tone)
    return min(255, round(red + 3 * factors.skin_warmth)), green, round(blue - 7 * factors.skin_warmth)


def _paint_body(canvas: Canvas, head: Head, factors: Factors, skin: Colour) -> None:
    half = 0.58 * head.half_width
    neck = [(-half, 30), (-half, 66), (-half - 3, 76), (-half - 20, 86), (half + 20, 86), (half + 3, 76), (half, 66)]
    across, v = np.array([*neck, (half, 30)], dtype=float).T
    canvas.fill(head.behind(across, v), skin, SKIN)
    canvas.fill(head.behind(np.array([-half, half, 4, -4]), np.array([80, 80, 108, 108])), skin, SKIN)
    cloth = _from_hls(factors.clothes_hue, 0.25 + 0.55 * factors.clothes_lightness, 0.3)
    depth = {"crew": 8.0, "v_neck": 25.0, "shirt": 18.0}[factors.collar]
    edge = half + 9
    across = np.array([-edge, -edge * 0.55, 0, edge * 0.55, edge, 62, 88, 120, 120, -120, -120, -88, -62])
    dip = 1.0 if factors.collar == "crew" else 0.5
    v = np.array([76, 76 + depth * dip, 76 + depth, 76 + depth * dip, 76, 86, 94, 112, 140, 140, 112, 94, 86])
    canvas.fill(head.behind(across, v), cloth, OTHER)
    neckline = head.behind(across[:5], v[:5])
    canvas.line(neckline, scaled(cloth, 0.78), 2.2, material=OTHER)
    if factors.collar == "shirt":
        for side in (-1, 1):
            wing = [
                (edge * side, 74),
                (2 * side, 76 + depth + 1),
                (16 * side, 76 + depth + 11),
                (edge * side + 7 * side, 82),
            ]
            across, v = np.array(wing, dtype=float).T
            canvas.fill(head.behind(across, v), mixed(cloth, (255, 255, 255), 0.25), OTHER)


def _paint_ears(canvas: Canvas, head: Head, skin: Colour) -> None:
    for side in (-1.0, 1.0):
        # The ear on the side that the face turns away from comes forward, the other one hides.
        shown = 1 - side * head.yaw_sine * 1.5
        rim = head.outline(np.array([math.pi - 0.12 if side < 0 else 0.12]))[0]
        width, turn = 7.5 * min(1.25, max(0.3, shown)), _ROUND[::3]
        centre = rim + np.array([-side * 2.5 * max(0.0, shown - 0.6), 0.0])
        canvas.fill(centre + np.stack([width * np.cos(turn), 14 * np.sin(turn)], axis=-1), scaled(skin, 0.95), SKIN)
        inner = centre + np.array([side * 1.2, 0.5])
        canvas.fill(inner + np.stack([0.55 * width * np.cos(turn), 9 * np.sin(turn)], axis=-1), scaled(skin, 0.78))


def _lit(canvas: Canvas, head: Head, factors: Factors) -> Image.Image:
    """Light on the shapes, and the backdrop behind them."""
    skin, hair, figure = canvas.materials()
    strength = 0.25 + 0.75 * factors.light_strength
    factor, (sheen, relief, blush) = canvas.scratch()
    glow(_sheen_spots(head, factors, strength), sheen)
    sheen *= skin if factors.hair_style == "bald" else hair
    glow(_relief_spots(head, factors, strength), relief)
    glow(_blush_spots(head, factors), blush)
    relief *= skin
    blush *= skin

    sheen += _light(head, factors, strength)
    np.multiply(_SHADE_OF_SKIN, relief, out=factor)  # (3, HEIGHT, WIDTH)
    for channel, redder in enumerate(_BLUSH):
        factor[channel] += redder * blush
    factor += sheen
    factor *= 1 + np.float32(factors.light_warmth) * _LIGHT_TINT
    colours = canvas.colours()
    np.minimum(colours, 255 * figure, out=colours)  # lines may stick out of the figure by a pixel
    factor *= colours
    behind = canvas.planes(_backdrop(factors))
    behind *= 1 - figure
    factor += behind
    np.minimum(factor, np.float32(255), out=factor)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in factor.astype(np.uint8)])


def _light(head: Head, factors: Factors, strength: float) -> Field:
    """What the light leaves of each colour, around 1."""
    x, y = 1.2 * factors.light_x, 0.45 * factors.light_y - 0.35
    length = math.sqrt(x * x + y * y + 1)
    middle = 0.5 * (head.outline(np.array([0.0]))[0] + head.outline(np.array([math.pi]))[0])
    middle = middle + np.array([6.0 * head.yaw_sine, 4.0])
    light = ball_light(middle, (head.half_width * 1.25, 92.0), (x / length, y / length, 1 / length))
    light -= np.float32(0.84)
    light *= np.float32(0.6 * strength)
    light += 1
    return light


def _sheen_spots(head: Head, factors: Factors, strength: float) -> Points:
    """The shine on the hair."""
    x, y = head.behind(30.0 * factors.light_x, -50.0 + 6 * factors.light_y)
    return np.array([(x, y, 24.0, 8.0, 0.08 + 0.24 * strength)])


def _blush_spots(head: Head, factors: Factors) -> Points:
    """Where skin is redder."""
    amount = 0.12 + 0.45 * factors.blush
    cheeks, tip = head.on_face(np.array([-25.0, 25.0]), 24.0), nose_tip(head)
    return np.array([*((x, y, 10.0, 7.5, amount) for x, y in cheeks), (tip[0], tip[1], 6.0, 5.0, 0.5 * amount)])


def _relief_spots(head: Head, factors: Factors, strength: float) -> Points:
    """Soft light and shade of the skin's own relief, above and below 0."""
    dark = -0.1 - 0.12 * strength
    far = -1.0 if factors.light_x > 0 else 1.0  # the side in shade
    sideways = abs(factors.light_x)
    pairs = [  # on both sides: u, v, radii, amount
        (head.eye_u, -2.0, 10.0, 6.0, 0.55 * dark),  # eye sockets
        (8.0, -1.0, 4.0, 6.0, 0.45 * dark),
        (26.0, 17.0, 9.0, 6.0, 0.07),  # cheekbones
        (31.0, 42.0, 8.0, 11.0, 0.4 * dark),  # hollows of the cheeks
    ]
    surface = np.array(
        [(side * u, *rest) for u, *rest in pairs for side in (-1.0, 1.0)]
        + [
            (0.0, head.chin - 8.0, 8.0, 5.0, 0.08),
            (-far * 8.0 * sideways, -28.0, 17.0, 9.0, 0.08),  # forehead
        ]
    )
    surface[:, :2] = head.on_face(surface[:, 0], surface[:, 1])
    tip_x, tip_y = nose_tip(head)
    bridge_x, bridge_y = head.place(0.0, 10.0, 47.0)
    lip_x, lip_y = mouth_line(head, np.array(0.0), 11.0 + factors.lip_fullness)
    chin_x, chin_y = head.outline(np.array([math.pi / 2]))[0]
    free = [
        (bridge_x, bridge_y + 2.0, 2.6, 10.0, 0.12),
        (tip_x - 0.8 * far, tip_y - 1.5, 3.2, 2.8, 0.16),
        (bridge_x + 6.5 * far, bridge_y + 5.0, 3.6, 10.0, dark * (0.35 + 0.75 * sideways)),
        (tip_x + 2.0 * far, tip_y + 9.5, 8.5, 3.2, 0.9 * dark),  # under the nose
        (lip_x, lip_y, 10.0, 2.8, 0.8 * dark),
        (chin_x + 5.0 * far * sideways, chin_y + 10.0, 24.0, 7.0, 1.5 * dark),  # on the neck
    ]
    return np.concatenate([surface, np.array(free)])


def _backdrop(factors: Factors) -> Image.Image:
    """A soft gradient, with blurred shapes."""
    lightness = 0.34 + 0.46 * factors.backdrop_lightness
    top = _from_hls(factors.backdrop_hue, lightness, 0.24)
    bottom = _from_hls((factors.backdrop_hue + 0.07) % 1.0, lightness * 0.75, 0.24)
    if factors.backdrop == "plain":
        return _gradient(top, bottom, _GRADIENT)
    picture = _gradient(top, bottom, _SMALL_GRADIENT)
    width, height = picture.size
    generator = np.random.default_rng(factors.texture)
    draw = ImageDraw.Draw(picture, "RGBA")
    if factors.backdrop == "bokeh":
        for x, y, size, shift in generator.uniform(0, 1, (9, 4)).tolist():
            radius, hue = 3 + 6 * size, (factors.backdrop_hue + 0.3 * shift) % 1.0
            box = (width * x - radius, height * y - radius, width * x + radius, height * y + radius)
            draw.ellipse(box, fill=(*_from_hls(hue, 0.8, 0.4), 90))
    elif factors.backdrop == "panels":
        for x, size, shift in generator.uniform(0, 1, (3, 3)).tolist():
            box = (width * x, 0, width * x + 5 + 13 * size, height)
            draw.rectangle(box, fill=(*scaled(top, 0.75 + 0.5 * shift), 140))
    elif factors.backdrop == "hills":
        for level, slope in generator.uniform(-1, 1, (2, 2)).tolist():
            middle, rise = height * (0.5 + 0.14 * level), 11 * slope
            corners = (0, middle - rise, width / 2, middle - 5, width, middle + rise, width, height, 0, height)
            hue = (factors.backdrop_hue + 0.15) % 1.0
            draw.polygon(corners, fill=(*_from_hls(hue, lightness * 0.65, 0.22), 140))
    blurred = picture.filter(ImageFilter.BoxBlur(2))
    return blurred.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


def _gradient(top: Colour, bottom: Colour, share: Image.Image) -> Image.Image:
    return Image.composite(Image.new("RGB", share.size, bottom), Image.new("RGB", share.size, top), share)


def _from_hls(hue: float, lightness: float, saturation: float) -> Colour:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)
