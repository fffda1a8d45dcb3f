"""Named parts of a face as masks: where the second face enters a fused picture.

A mask is 1 where B goes and 0 where A stays. Points are (x, y) in pixels of the square picture, centres at whole
numbers; left and right are the picture's, as in CelebA's landmarks, not the person's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Landmarks = Mapping[str, Sequence[float]]
"""Name -> (x, y) of the five `POINTS`."""
POINTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")

SIDE = 178
"""Width of CelebA's aligned pictures, of which the centre square is used."""
CELEBA = {
    "lefteye": (69.0, 91.0),
    "righteye": (108.0, 91.0),
    "nose": (88.0, 115.0),
    "leftmouth": (72.0, 132.0),
    "rightmouth": (105.0, 132.0),
}
"""Where CelebA's alignment puts the landmarks, in pixels of that centre square."""


class Box(NamedTuple):
    """A box along the line of the eyes, in face units: the larger of the eyes' distance and the mouth's from them."""

    anchor: str
    """What its distances count from: the middle of the `eyes` or of the `mouth`, or the tip of the `nose`."""
    aside: float
    up: float
    down: float


BOXES = {
    "eyes": Box("eyes", 0.95, 0.55, 0.35),  # with the brows
    "nose": Box("nose", 0.42, 0.52, 0.22),
    "mouth": Box("mouth", 0.65, 0.24, 0.36),
    "hair": Box("eyes", 1.9, 4.0, -0.6),  # from above the brows to the picture's edge
}
FACE = Box("eyes", 1.25, 1.2, 1.9)  # from the forehead to the chin
SOFT = 0.35
"""Share of an oval's radius over which it fades; towards the picture's border, share of a third of its side."""
HALVES = ("left", "right")
NAMES = (*BOXES, *HALVES)


def celeba(width: int, height: int) -> dict[str, tuple[float, float]]:
    """The usual landmarks of a picture aligned as CelebA's are, in its own pixels.

    178 x 218 gives CelebA's own positions; any other picture is taken for one whose centre square was scaled.
    """
    side = min(width, height)
    left, top = (width - side) / 2 - 0.5, (height - side) / 2 - 0.5
    scale = side / SIDE
    return {name: (left + (x + 0.5) * scale, top + (y + 0.5) * scale) for name, (x, y) in CELEBA.items()}


def mask(name: str, landmarks: Landmarks, size: int) -> Tensor:
    """The mask of a named region.

    Args:
        name: one of `NAMES`. `left` and `right` are halves of the picture and need no landmarks.
        landmarks: in pixels of the picture; see `pipeline.inference.landmarks` for where they come from.
        size: S, the side of the picture in pixels.

    Returns:
        (S, S) float32, 1 inside the region and 0 outside; all 0 where the region lies outside of the picture, as the
        hair does in tight crops.

    Raises:
        ValueError: for an unknown name.
    """
    if name in HALVES:
        inside = torch.arange(size).expand(size, size) < size // 2
        return (inside if name == "left" else ~inside).float()
    if name not in BOXES:
        raise ValueError(f"unknown region {name}; known are: {', '.join(NAMES)}")
    box, (anchor, unit, angle) = BOXES[name], _placed(name, landmarks)
    along, down = _turned(anchor, angle, size)
    inside = (along.abs() <= box.aside * unit) & (down >= -box.up * unit) & (down <= box.down * unit)
    return inside.float()


def oval(landmarks: Landmarks, size: int) -> Tensor:
    """Where the face is, with a soft edge: (S, S) in [0, 1], 1 in its middle and 0 on the picture's border."""
    anchor, unit, angle = _placed("eyes", landmarks)
    along, down = _turned(anchor, angle, size)
    middle, reach = (FACE.down - FACE.up) / 2 * unit, (FACE.down + FACE.up) / 2 * unit
    inside = 1 - torch.hypot(along / (FACE.aside * unit), (down - middle) / reach)
    step = torch.arange(size)
    border = torch.minimum(step, size - 1 - step) * 3 / size
    weight = (torch.minimum(inside, torch.minimum(border[:, None], border)) / SOFT).clamp(0, 1)
    return weight * weight * (3 - 2 * weight)


def celeba_boxes() -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each of `BOXES` at CelebA's usual landmarks, in shares of the picture's side."""
    boxes = []
    for name, box in BOXES.items():
        anchor, unit, angle = _placed(name, CELEBA)
        assert angle == 0, "CelebA's alignment levels the eyes"
        x, y = anchor.real + 0.5, anchor.imag + 0.5  # from the picture's corner
        ends = (x - box.aside * unit, y - box.up * unit, x + box.aside * unit, y + box.down * unit)
        left, top, right, bottom = (min(max(end / SIDE, 0.0), 1.0) for end in ends)
        boxes.append((left, top, right, bottom))
    return boxes


def _placed(name: str, landmarks: Landmarks) -> tuple[complex, float, float]:
    """A box's anchor x + iy, its face unit in pixels, and the angle of its upper edge (clockwise, in radians)."""
    points = {point: complex(*landmarks[point]) for point in POINTS}
    eyes, mouth = (points["lefteye"] + points["righteye"]) / 2, (points["leftmouth"] + points["rightmouth"]) / 2
    anchor = {"eyes": eyes, "nose": points["nose"], "mouth": mouth}[BOXES[name].anchor]
    line = points["righteye"] - points["lefteye"]
    unit = max(abs(line), abs(mouth - eyes))  # turned aside, the eyes come closer; nodding, the mouth does
    # An eye line that runs backwards is a detector's slip: taken as level.
    return anchor, unit, math.atan2(line.imag, line.real) if line.real > 0 else 0.0


def _turned(anchor: complex, angle: float, size: int) -> tuple[Tensor, Tensor]:
    """How far each pixel lies from the anchor, along the line of the eyes and down from it: (S, S) twice."""
    y, x = torch.meshgrid(torch.arange(size) - anchor.imag, torch.arange(size) - anchor.real, indexing="ij")
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def feathered(mask: Tensor, pixels: int) -> Tensor:
    """The mask with its edge as a ramp: 0 from `pixels` outside of the edge on, 1 from `pixels` inside of it on.

    (..., S, S) in [0, 1] -> the same shape. The picture's own border is no edge.
    """
    if pixels == 0:
        return mask
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    for padding, window in (
        ((pixels, pixels, 0, 0), (1, 2 * pixels + 1)),
        ((0, 0, pixels, pixels), (2 * pixels + 1, 1)),
    ):
        flat = functional.avg_pool2d(functional.pad(flat, padding, mode="replicate"), window, stride=1)
    return flat.reshape(mask.shape)


def composite(fused: Tensor, reconstruction: Tensor, mask: Tensor) -> Tensor:
    """C inside the mask over A' outside: (B, 3, S, S) twice and (S, S) or (B, S, S) -> (B, 3, S, S)."""
    weight = mask if mask.dim() == 2 else mask[:, None]
    return weight * fused + (1 - weight) * reconstruction
