"""Paint one face from its factors: flat shapes from back to front, then light."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.data.synth.canvas import COLUMNS, OTHER, ROWS, SKIN, Canvas, Pixels, circle, glow
from pipeline.data.synth.colours import WHITE, Colour, from_hls, mixed, ramp, scaled
from pipeline.data.synth.factors import Factors
from pipeline.data.synth.features import paint_beard, paint_brows, paint_eyes, paint_glasses, paint_mouth, paint_nose
from pipeline.data.synth.hair import paint_back_hair, paint_front_hair
from pipeline.data.synth.head import HEIGHT, WIDTH, Head, Points

_SKIN_TONES = ((244, 214, 196), (234, 194, 168), (216, 168, 136), (180, 130, 100), (136, 94, 72), (98, 68, 54))
# How strongly shade and blush take each colour from skin: red stays longest.
_SHADE = np.array([0.82, 1.06, 1.16], dtype=np.float32)[:, None, None]
_BLUSH = np.array([0.05, -0.3, -0.24], dtype=np.float32)[:, None, None]
_LIGHT_TINT = np.array([0.045, 0.0, -0.07], dtype=np.float32)
_SMALL = (61, 74)  # size of the backdrop before it is tripled
_DOWN, _SMALL_DOWN = (np.linspace(0, 1, size, dtype=np.float32)[:, None] for size in (HEIGHT, _SMALL[1]))
_ROUND = np.linspace(0, 2 * math.pi, 48, endpoint=False)
_OVAL = circle(16)


def paint(factors: Factors) -> Image.Image:
    """Paint a face: RGB, 178 x 218, and the same picture whenever the factors are the same."""
    canvas, head, skin = Canvas(), Head(factors), skin_colour(factors)
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
    cloth = from_hls(factors.clothes_hue, 0.25 + 0.55 * factors.clothes_lightness, 0.3)
    depth = {"crew": 8.0, "v_neck": 25.0, "shirt": 18.0}[factors.collar]
    edge = half + 9
    across = np.array([-edge, -edge * 0.55, 0, edge * 0.55, edge, 62, 88, 120, 120, -120, -120, -88, -62])
    dip = 1.0 if factors.collar == "crew" else 0.5
    v = np.array([76, 76 + depth * dip, 76 + depth, 76 + depth * dip, 76, 86, 94, 112, 140, 140, 112, 94, 86])
    body = head.behind(across, v)
    canvas.fill(body, cloth, OTHER)
    canvas.line(body[:5], scaled(cloth, 0.78), 2.2, material=OTHER)
    if factors.collar == "shirt":
        for side in (-1, 1):
            across, v = side * np.array([edge, 2, 16, edge + 7]), np.array([74, 77 + depth, 87 + depth, 82])
            canvas.fill(head.behind(across, v), mixed(cloth, WHITE, 0.25), OTHER)


def _paint_ears(canvas: Canvas, head: Head, skin: Colour) -> None:
    rims = head.outline(np.array([math.pi - 0.12, 0.12]))
    for side, rim in zip((-1.0, 1.0), rims, strict=True):
        # The ear on the side that the face turns away from comes forward, the other one hides.
        shown = 1 - side * head.yaw_sine * 1.5
        width = 7.5 * min(1.25, max(0.3, shown))
        centre = rim + np.array([-side * 2.5 * max(0.0, shown - 0.6), 0.0])
        canvas.fill(centre + _OVAL * np.array([width, 14]), scaled(skin, 0.95), SKIN)
        inner = centre + np.array([side * 1.2, 0.5])
        canvas.fill(inner + _OVAL * np.array([0.55 * width, 9]), scaled(skin, 0.78))


def _lit(canvas: Canvas, head: Head, factors: Factors) -> Image.Image:
    """Light on the shapes, and the backdrop behind them."""
    skin, hair, figure = canvas.materials()
    strength = 0.25 + 0.75 * factors.light_strength
    shades, blushes = _skin_spots(head, factors, strength)
    shine_x, shine_y = head.behind(30.0 * factors.light_x, -50.0 + 6 * factors.light_y)
    shine = glow(np.array([(shine_x, shine_y, 24.0, 8.0, 0.08 + 0.24 * strength)]))
    light = shine * (skin if factors.hair_style == "bald" else hair) + _light(head, factors, strength)
    tint = (1 + np.float32(factors.light_warmth) * _LIGHT_TINT)[:, None, None]
    lit = tint * _SHADE * (glow(shades) * skin) + tint * _BLUSH * (glow(blushes) * skin) + tint * light
    picture = lit * canvas.colours(figure) + _backdrop(factors) * (1 - figure)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy())


def _light(head: Head, factors: Factors, strength: float) -> Pixels:
    """What the light leaves of each colour, around 1: that of a ball seen from the front."""
    x, y = 1.2 * factors.light_x, 0.45 * factors.light_y - 0.35
    length, contrast = math.sqrt(x * x + y * y + 1), 0.6 * strength
    right, below, near = (np.float32(contrast * part) for part in (x / length, y / length, 1 / length))
    centre = (head.behind(0.0, 0.0, 3.0) + np.array([6.0 * head.yaw_sine, 4.0])).astype(np.float32)
    across = np.clip((COLUMNS - centre[0]) / np.float32(head.half_width * 1.25), -1, 1)
    down = np.clip((ROWS - centre[1]) / np.float32(92.0), -1, 1)[:, None]
    height = np.sqrt(np.maximum((1 - down * down) - across * across, np.float32(0.04)))
    light: Pixels = height * near + across * right + (down * below + np.float32(1 - 0.84 * contrast))
    return light


def _skin_spots(head: Head, factors: Factors, strength: float) -> tuple[Points, Points]:
    """Soft light and shade of the skin's own relief, above and below 0; and where the skin is redder."""
    dark = -0.1 - 0.12 * strength
    far = -1.0 if factors.light_x > 0 else 1.0  # the side in shade
    sideways = abs(factors.light_x)
    redness = 0.12 + 0.45 * factors.blush
    pairs = [  # on both sides: u, v, radii, amount
        (head.eye_u, -2.0, 10.0, 6.0, 0.55 * dark),  # eye sockets
        (8.0, -1.0, 4.0, 6.0, 0.45 * dark),
        (26.0, 17.0, 9.0, 6.0, 0.07),  # cheekbones
        (31.0, 42.0, 8.0, 11.0, 0.4 * dark),  # hollows of the cheeks
    ]
    shades = [(side * u, *rest) for u, *rest in pairs for side in (-1.0, 1.0)]
    shades.append((0.0, head.chin - 8.0, 8.0, 5.0, 0.08))
    shades.append((-far * 8.0 * sideways, -28.0, 17.0, 9.0, 0.08))  # forehead
    cheeks = [(side * 25.0, 24.0, 10.0, 7.5, redness) for side in (-1.0, 1.0)]
    surface = np.array(shades + cheeks)
    surface[:, :2] = head.on_face(surface[:, 0], surface[:, 1])
    lip_v = head.mouth_v - 0.4 * head.mouth_curve + 11.0 + factors.lip_fullness
    v = np.array([head.nose_v - 2.0, 10.0, lip_v, head.chin])
    places = head.place(0.0, v, np.array([54.0, 47.0, 44.0, 30.0])).tolist()
    (tip_x, tip_y), (bridge_x, bridge_y), (lip_x, lip_y), (chin_x, chin_y) = places
    free = [
        (bridge_x, bridge_y + 2.0, 2.6, 10.0, 0.12),
        (tip_x - 0.8 * far, tip_y - 1.5, 3.2, 2.8, 0.16),
        (bridge_x + 6.5 * far, bridge_y + 5.0, 3.6, 10.0, dark * (0.35 + 0.75 * sideways)),
        (tip_x + 2.0 * far, tip_y + 9.5, 8.5, 3.2, 0.9 * dark),  # under the nose
        (lip_x, lip_y, 10.0, 2.8, 0.8 * dark),
        (chin_x + 5.0 * far * sideways, chin_y + 10.0, 24.0, 7.0, 1.5 * dark),  # on the neck
    ]
    nose = (tip_x, tip_y, 6.0, 5.0, 0.5 * redness)
    return np.concatenate([surface[:-2], free]), np.concatenate([surface[-2:], [nose]])


def _backdrop(factors: Factors) -> Pixels:
    """A soft gradient, with blurred shapes: (3, HEIGHT, WIDTH), or (3, HEIGHT, 1) without shapes."""
    lightness = 0.34 + 0.46 * factors.backdrop_lightness
    top = from_hls(factors.backdrop_hue, lightness, 0.24)
    bottom = from_hls((factors.backdrop_hue + 0.07) % 1.0, lightness * 0.75, 0.24)
    if factors.backdrop == "plain":
        return _gradient(top, bottom, _DOWN).T[:, :, None]
    rows = np.rint(_gradient(top, bottom, _SMALL_DOWN)).astype(np.uint8)
    picture = Image.fromarray(np.repeat(rows[:, None], _SMALL[0], axis=1))
    width, height = picture.size
    generator = np.random.default_rng(factors.texture)
    draw = ImageDraw.Draw(picture, "RGBA")
    if factors.backdrop == "bokeh":
        for x, y, size, shift in generator.uniform(0, 1, (9, 4)).tolist():
            radius, hue = 3 + 6 * size, (factors.backdrop_hue + 0.3 * shift) % 1.0
            box = (width * x - radius, height * y - radius, width * x + radius, height * y + radius)
            draw.ellipse(box, fill=(*from_hls(hue, 0.8, 0.4), 90))
    elif factors.backdrop == "panels":
        for x, size, shift in generator.uniform(0, 1, (3, 3)).tolist():
            box = (width * x, 0, width * x + 5 + 13 * size, height)
            draw.rectangle(box, fill=(*scaled(top, 0.75 + 0.5 * shift), 140))
    elif factors.backdrop == "hills":
        for level, slope in generator.uniform(-1, 1, (2, 2)).tolist():
            middle, rise = height * (0.5 + 0.14 * level), 11 * slope
            corners = (0, middle - rise, width / 2, middle - 5, width, middle + rise, width, height, 0, height)
            hue = (factors.backdrop_hue + 0.15) % 1.0
            draw.polygon(corners, fill=(*from_hls(hue, lightness * 0.65, 0.22), 140))
    blurred = np.asarray(picture.filter(ImageFilter.BoxBlur(2)), np.float32)
    return _tripled(_tripled(blurred, 0), 1)[:HEIGHT, :WIDTH].transpose(2, 0, 1)


def _gradient(top: Colour, bottom: Colour, share: Pixels) -> Pixels:
    first, last = np.array(top, np.float32), np.array(bottom, np.float32)
    return first + share * (last - first)


def _tripled(pixels: Pixels, axis: int) -> Pixels:
    """Straight lines between the pixels along one axis: n of them become 3n - 3."""
    first, last = np.split(pixels, [-1], axis)[0], np.split(pixels, [1], axis)[1]
    step = (last - first) * np.float32(1 / 3)
    tripled = np.stack([first, first + step, last - step], axis + 1)
    return tripled.reshape(*pixels.shape[:axis], -1, *pixels.shape[axis + 1 :])
