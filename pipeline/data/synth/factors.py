"""The known factors of a painted face: how they are drawn, and the CelebA attributes they amount to."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import numpy as np

# Each choice, and how often it is drawn; the shares of a table sum to 1.
HAIR_STYLES = {
    "bald": 0.06,
    "buzz": 0.08,
    "short": 0.1,
    "side_part": 0.1,
    "fringe": 0.1,
    "quiff": 0.08,
    "curly": 0.08,
    "afro": 0.08,
    "bob": 0.08,
    "long": 0.1,
    "wavy": 0.08,
    "bun": 0.06,
}
HAIR_COLOURS = {"black": 0.28, "brown": 0.28, "blond": 0.2, "red": 0.12, "gray": 0.12}
GLASSES = {"none": 0.7, "round": 0.11, "square": 0.11, "sunglasses": 0.08}
BEARDS = {"none": 0.68, "stubble": 0.09, "moustache": 0.08, "goatee": 0.06, "full": 0.09}
BACKDROPS = {"plain": 0.4, "bokeh": 0.25, "panels": 0.2, "hills": 0.15}
COLLARS = {"crew": 0.4, "v_neck": 0.3, "shirt": 0.3}

LONG_STYLES = ("bob", "long", "wavy")
COILED_STYLES = ("curly", "afro")

Numbers = Iterator[float]
"""Uniform in [0, 1); a factor takes the next one, or the next two."""


def _signed(numbers: Numbers) -> float:
    return round(2 * next(numbers) - 1, 4)


def _unit(numbers: Numbers) -> float:
    return round(next(numbers), 4)


def _sometimes(share: float) -> Callable[[Numbers], float]:
    """Zero, or with probability `share` in [0.25, 1]."""

    def draw(numbers: Numbers) -> float:
        chosen, amount = next(numbers) < share, next(numbers)
        return round(0.25 + 0.75 * amount, 4) if chosen else 0.0

    return draw


def _choice(shares: dict[str, float]) -> Callable[[Numbers], str]:
    def draw(numbers: Numbers) -> str:
        number = next(numbers)
        ends = zip(shares, itertools.accumulate(shares.values()), strict=True)
        return next((name for name, end in ends if number < end), [*shares][-1])  # the sum may be rounded below 1

    return draw


Signed = Annotated[float, _signed]
"""In [-1, 1]."""
Unit = Annotated[float, _unit]
"""In [0, 1]."""
Turn = Annotated[float, lambda numbers: _unit(numbers) % 1.0]
"""In [0, 1): of the colour wheel."""


@dataclass(frozen=True)
class Factors:
    """Everything that decides how one face looks. Left and right are the viewer's, as in CelebA's landmarks.

    They are drawn in this order: a new one in between changes every face (see faces.VERSION).
    """

    yaw: Signed
    """Turned by 32 degrees to the left (-1) or to the right (1)."""
    pitch: Signed
    """Looking up (-1) or down (1) by 7 degrees."""
    roll: Signed
    """Tilted by 5 degrees, clockwise where positive."""
    face_width: Signed
    """Narrow to wide."""
    face_length: Signed
    """Short to long chin."""
    jaw: Signed
    """Pointed to square."""
    skin_tone: Unit
    """Light to dark."""
    skin_warmth: Signed
    """Cool to warm."""
    blush: Unit
    """Redness of the cheeks."""
    hair_style: Annotated[str, _choice(HAIR_STYLES)]
    hair_colour: Annotated[str, _choice(HAIR_COLOURS)]
    hair_shade: Signed
    """Dark to light within the colour."""
    hair_volume: Unit
    hair_parting: Signed
    """Where the hair parts, left to right."""
    texture: Annotated[int, lambda numbers: int(2**31 * next(numbers))]
    """[0, 2**31): seed of curls and strands."""
    eye_size: Signed
    eye_openness: Unit
    """Nearly shut to wide open."""
    eye_colour: Unit
    """Dark brown, brown, hazel, green, blue, gray."""
    eye_tilt: Signed
    """Outer corners down to up."""
    brow_thickness: Unit
    brow_arch: Signed
    """Flat to arched."""
    glasses: Annotated[str, _choice(GLASSES)]
    glasses_tone: Unit
    """Colour of the rims, black to gold to red."""
    nose_width: Signed
    nose_length: Signed
    smile: Signed
    """Corners of the mouth down to up."""
    mouth_open: Annotated[float, _sometimes(0.5)]
    """[0, 1]: 0 is shut."""
    mouth_width: Signed
    lip_fullness: Signed
    lipstick: Annotated[float, _sometimes(0.3)]
    """[0, 1]: 0 is none."""
    beard: Annotated[str, _choice(BEARDS)]
    light_x: Signed
    """Light from the left (-1) to from the right (1)."""
    light_y: Signed
    """Light from above (-1) to from below (1)."""
    light_strength: Unit
    """Flat to contrasty."""
    light_warmth: Signed
    """Bluish to yellowish."""
    backdrop: Annotated[str, _choice(BACKDROPS)]
    backdrop_hue: Turn
    backdrop_lightness: Unit
    clothes_hue: Turn
    clothes_lightness: Unit
    collar: Annotated[str, _choice(COLLARS)]


def draw_factors(seed: int, index: int) -> Factors:
    """Draw the factors of image `index`, one by one, from the counter-based generator keyed by both.

    Args:
        seed: in [0, 2**64).
        index: in [0, 2**64); the painted files count from 1, as CelebA's do.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
    numbers = iter(generator.random(64).tolist())
    kinds: dict[str, Any] = get_type_hints(Factors, include_extras=True)
    return Factors(**{name: kind.__metadata__[0](numbers) for name, kind in kinds.items()})


def attributes(factors: Factors) -> dict[str, bool]:
    """The factors as CelebA's yes-or-no attributes: first those of CelebA, by its spelling, then ours."""
    has_hair = factors.hair_style != "bald"
    return {
        "Arched_Eyebrows": factors.brow_arch > 0.3,
        "Bald": not has_hair,
        "Bangs": factors.hair_style == "fringe",
        "Big_Lips": factors.lip_fullness > 0.3,
        "Big_Nose": factors.nose_width > 0.3,
        "Black_Hair": has_hair and factors.hair_colour == "black",
        "Blond_Hair": has_hair and factors.hair_colour == "blond",
        "Brown_Hair": has_hair and factors.hair_colour == "brown",
        "Bushy_Eyebrows": factors.brow_thickness > 0.65,
        "Eyeglasses": factors.glasses != "none",
        "Goatee": factors.beard == "goatee",
        "Gray_Hair": has_hair and factors.hair_colour == "gray",
        "Mouth_Slightly_Open": factors.mouth_open > 0,
        "Mustache": factors.beard in ("moustache", "goatee", "full"),
        "Narrow_Eyes": factors.eye_openness < 0.3,
        "No_Beard": factors.beard in ("none", "moustache"),
        "Pale_Skin": factors.skin_tone < 0.15,
        "Rosy_Cheeks": factors.blush > 0.65,
        "Smiling": factors.smile > 0.2,
        "Straight_Hair": has_hair and factors.hair_style not in (*COILED_STYLES, "wavy"),
        "Wavy_Hair": factors.hair_style in ("wavy", *COILED_STYLES),
        "Wearing_Lipstick": factors.lipstick > 0,
        "Dark_Skin": factors.skin_tone > 0.65,
        "Facing_Left": factors.yaw < -0.25,
        "Facing_Right": factors.yaw > 0.25,
        "Light_From_Left": factors.light_x < -0.25,
        "Light_From_Right": factors.light_x > 0.25,
        "Long_Hair": factors.hair_style in LONG_STYLES,
        "Red_Hair": has_hair and factors.hair_colour == "red",
        "Square_Jaw": factors.jaw > 0.3,
        "Sunglasses": factors.glasses == "sunglasses",
    }
