"""Painted faces put into larger photographs, with the truth of where their landmarks are."""

import cmath
import math
from pathlib import Path

from PIL import Image
from PIL.Image import Resampling, Transform

from pipeline.data.synth.faces import draw_factors, landmarks, paint

SIZE = (640, 480)
WALL = (110, 130, 120)
Points = dict[str, tuple[float, float]]

PLACES = {
    "large": (2.0, 0.0, (320, 240)),
    "small": (0.5, 0.0, (500, 120)),
    "turned": (1.2, 20.0, (300, 240)),
    "turned back": (1.2, -20.0, (300, 240)),
    "off centre": (1.0, 0.0, (120, 330)),
}
"""Scale, degrees clockwise, and where the middle of the face is."""


def photograph(number: int, scale: float, degrees: float, middle: tuple[int, int]) -> tuple[Image.Image, Points]:
    """A painted face of 178 x 218 in front of a plain wall of 640 x 480, and its landmarks there."""
    return beside(Image.new("RGB", SIZE, WALL), number, scale, degrees, middle)


def beside(
    wall: Image.Image, number: int, scale: float, degrees: float, middle: tuple[int, int]
) -> tuple[Image.Image, Points]:
    """As `photograph`, in front of what is there."""
    factors = draw_factors(7, number)
    face = paint(factors).convert("RGB")
    factor = cmath.rect(scale, math.radians(degrees))
    # Pillow counts from the picture's corner; the face's middle is (89, 109) there.
    back, start = 1 / factor, 89 + 109j - complex(*middle) / factor
    coefficients = (back.real, -back.imag, start.real, back.imag, back.real, start.imag)

    def placed(picture: Image.Image) -> Image.Image:
        return picture.transform(wall.size, Transform.AFFINE, coefficients, Resampling.BICUBIC)

    result = wall.copy()
    result.paste(placed(face), mask=placed(Image.new("L", face.size, 255)))
    moved = {
        name: factor * (complex(*point) + 0.5 + 0.5j - 89 - 109j) + complex(*middle) - 0.5 - 0.5j
        for name, point in landmarks(factors).items()
    }
    return result, {name: (point.real, point.imag) for name, point in moved.items()}


def folder_of(folder: Path, faces: int = 2) -> Path:
    """`faces` photographs of each place, as PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, place in PLACES.items():
        for number in range(1, faces + 1):
            photograph(number, *place)[0].save(folder / f"{name} {number}.png")
    return folder


def distance(found: Points, truth: Points) -> float:
    """Mean distance of the landmarks, as a share of the distance between the eyes."""
    apart = math.dist(truth["lefteye"], truth["righteye"])
    return sum(math.dist(found[name], truth[name]) for name in truth) / len(truth) / apart
