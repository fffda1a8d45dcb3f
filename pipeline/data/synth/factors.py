"""The known factors of a painted face: how they are drawn, and the CelebA attributes they amount to."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

HAIR_STYLES = ("bald", "buzz", "short", "side_part", "fringe", "quiff", "curly", "afro", "bob", "long", "wavy", "bun")
HAIR_COLOURS = ("black", "brown", "blond", "red", "gray")
GLASSES = ("none", "round", "square", "sunglasses")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
BACKDROPS = ("plain", "bokeh", "panels", "hills")
COLLARS = ("crew", "v_neck", "shirt")

LONG_STYLES = ("bob", "long", "wavy")
COILED_STYLES = ("curly", "afro")

# How often each choice is drawn, in the order above; every row sums to 1.
_HAIR_STYLE_SHARES = (0.06, 0.08, 0.1, 0.1, 0.1, 0.08, 0.08, 0.08, 0.08, 0.1, 0.08, 0.06)
_HAIR_COLOUR_SHARES = (0.28, 0.28, 0.2, 0.12, 0.12)
_GLASSES_SHARES = (0.7, 0.11, 0.11, 0.08)
_BEARD_SHARES = (0.68, 0.09, 0.08, 0.06, 0.09)
_BACKDROP_SHARES = (0.4, 0.25, 0.2, 0.15)
_COLLAR_SHARES = (0.4, 0.3, 0.3)


@dataclass(frozen=True)
class Factors:
    """Everything that decides how one face looks. Left and right are the viewer's, as in CelebA's landmarks."""

    yaw: float
    """[-1, 1]: turned by 32 degrees to the left (-1) or to the right (1)."""
    pitch: float
    """[-1, 1]: looking up (-1) or down (1) by 7 degrees."""
    roll: float
    """[-1, 1]: tilted by 5 degrees, clockwise where positive."""
    face_width: float
    """[-1, 1]: narrow to wide."""
    face_length: float
    """[-1, 1]: short to long chin."""
    jaw: float
    """[-1, 1]: pointed to square."""
    skin_tone: float
    """[0, 1]: light to dark."""
    skin_warmth: float
    """[-1, 1]: cool to warm."""
    blush: float
    """[0, 1]: redness of the cheeks."""
    hair_style: str
    """One of HAIR_STYLES."""
    hair_colour: str
    """One of HAIR_COLOURS."""
    hair_shade: float
    """[-1, 1]: dark to light within the colour."""
    hair_volume: float
    """[0, 1]."""
    hair_parting: float
    """[-1, 1]: where the hair parts, left to right."""
    texture: int
    """[0, 2**31): seed of curls and strands."""
    eye_size: float
    """[-1, 1]."""
    eye_openness: float
    """[0, 1]: nearly shut to wide open."""
    eye_colour: float
    """[0, 1]: dark brown, brown, hazel, green, blue, gray."""
    eye_tilt: float
    """[-1, 1]: outer corners down to up."""
    brow_thickness: float
    """[0, 1]."""
    brow_arch: float
    """[-1, 1]: flat to arched."""
    glasses: str
    """One of GLASSES."""
    glasses_tone: float
    """[0, 1]: colour of the rims, black to gold to red."""
    nose_width: float
    """[-1, 1]."""
    nose_length: float
    """[-1, 1]."""
    smile: float
    """[-1, 1]: corners of the mouth down to up."""
    mouth_open: float
    """[0, 1]: 0 is shut."""
    mouth_width: float
    """[-1, 1]."""
    lip_fullness: float
    """[-1, 1]."""
    lipstick: float
    """[0, 1]: 0 is none."""
    beard: str
    """One of BEARDS."""
    light_x: float
    """[-1, 1]: light from the left (-1) to from the right (1)."""
    light_y: float
    """[-1, 1]: light from above (-1) to from below (1)."""
    light_strength: float
    """[0, 1]: flat to contrasty."""
    light_warmth: float
    """[-1, 1]: bluish to yellowish."""
    backdrop: str
    """One of BACKDROPS."""
    backdrop_hue: float
    """[0, 1): turn of the colour wheel."""
    backdrop_lightness: float
    """[0, 1]."""
    clothes_hue: float
    """[0, 1): turn of the colour wheel."""
    clothes_lightness: float
    """[0, 1]."""
    collar: str
    """One of COLLARS."""


def draw_factors(seed: int, index: int) -> Factors:
    """Draw the factors of image `index`, each on its own, from the counter-based generator keyed by both.

    Args:
        seed: in [0, 2**64).
        index: in [0, 2**64); the painted files count from 1, as CelebA's do.
    """
    draws = _Draws(seed, index)
    signed, unit, sometimes, choice = draws.signed, draws.unit, draws.sometimes, draws.choice
    # Arguments are evaluated in the order written: inserting one changes every face (see synth.VERSION).
    return Factors(
        yaw=signed(),
        pitch=signed(),
        roll=signed(),
        face_width=signed(),
        face_length=signed(),
        jaw=signed(),
        skin_tone=unit(),
        skin_warmth=signed(),
        blush=unit(),
        hair_style=choice(HAIR_STYLES, _HAIR_STYLE_SHARES),
        hair_colour=choice(HAIR_COLOURS, _HAIR_COLOUR_SHARES),
        hair_shade=signed(),
        hair_volume=unit(),
        hair_parting=signed(),
        texture=draws.integer(2**31),
        eye_size=signed(),
        eye_openness=unit(),
        eye_colour=unit(),
        eye_tilt=signed(),
        brow_thickness=unit(),
        brow_arch=signed(),
        glasses=choice(GLASSES, _GLASSES_SHARES),
        glasses_tone=unit(),
        nose_width=signed(),
        nose_length=signed(),
        smile=signed(),
        mouth_open=sometimes(0.5),
        mouth_width=signed(),
        lip_fullness=signed(),
        lipstick=sometimes(0.3),
        beard=choice(BEARDS, _BEARD_SHARES),
        light_x=signed(),
        light_y=signed(),
        light_strength=unit(),
        light_warmth=signed(),
        backdrop=choice(BACKDROPS, _BACKDROP_SHARES),
        backdrop_hue=unit() % 1.0,
        backdrop_lightness=unit(),
        clothes_hue=unit() % 1.0,
        clothes_lightness=unit(),
        collar=choice(COLLARS, _COLLAR_SHARES),
    )


class _Draws:
    """The numbers of one image, each used once and in order."""

    def __init__(self, seed: int, index: int) -> None:
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
        self._numbers: Iterator[float] = iter(generator.random(64).tolist())

    def signed(self) -> float:
        """In [-1, 1]."""
        return round(2 * next(self._numbers) - 1, 4)

    def unit(self) -> float:
        """In [0, 1]."""
        return round(next(self._numbers), 4)

    def integer(self, end: int) -> int:
        """In [0, end)."""
        return int(end * next(self._numbers))

    def sometimes(self, share: float) -> float:
        """Zero, or with probability `share` in [0.25, 1]."""
        chosen, amount = next(self._numbers) < share, next(self._numbers)
        return round(0.25 + 0.75 * amount, 4) if chosen else 0.0

    def choice(self, names: tuple[str, ...], shares: tuple[float, ...]) -> str:
        """One of the names, as often as its share says."""
        number = next(self._numbers)
        for name, end in zip(names, itertools.accumulate(shares), strict=True):
            if number < end:
                return name
        return names[-1]  # the shares' sum may be rounded below 1


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
