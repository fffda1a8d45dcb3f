"""Colours of painted faces: how they are mixed, and taken from a ramp."""

import colorsys

Colour = tuple[int, int, int]
"""Red, green and blue in [0, 255]."""
WHITE: Colour = (255, 255, 255)


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """`first`, with a share in [0, 1] of `second`."""
    red, green, blue = (round((1 - share) * one + share * other) for one, other in zip(first, second, strict=True))
    return red, green, blue


def scaled(colour: Colour, factor: float) -> Colour:
    """A darker (below 1) or lighter colour."""
    red, green, blue = (min(255, round(part * factor)) for part in colour)
    return red, green, blue


def ramp(colours: tuple[Colour, ...], position: float) -> Colour:
    """The colour at `position` in [0, 1] of an evenly spaced ramp."""
    where = position * (len(colours) - 1)
    step = min(int(where), len(colours) - 2)
    return mixed(colours[step], colours[step + 1], where - step)


def from_hls(hue: float, lightness: float, saturation: float) -> Colour:
    """All in [0, 1]; a hue is a turn of the colour wheel."""
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)
