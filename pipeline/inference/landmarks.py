"""Where a photograph's landmarks come from: its shard, a file beside it, or CelebA's alignment.

Such a file is what `shard` writes beside each image: {"landmarks": {"lefteye": [x, y], ...}, "width": w, "height": h},
in pixels of the photograph as displayed. All functions return them in pixels of the square picture that models see.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.data.images import Crop
from pipeline.models import regions
from pipeline.models.regions import Landmarks

LARGEST = 2**20
"""Pixels: no picture's side is longer, and no point further away from its corner."""
CELEBA_SIZE = (178, 218)
"""Width and height of CelebA's aligned pictures."""
Points = dict[str, tuple[float, float]]


def fitted(landmarks: Landmarks, width: int, height: int, size: int, crop: int | None = None) -> Points:
    """Landmarks of a photograph of `width` x `height`, moved as `images.fit` moves its pixels."""
    side = min(crop or width, width, height)
    move = Crop(round((width - side) / 2), round((height - side) / 2), size / side)
    moved = {name: move.point(*landmarks[name]) for name in regions.POINTS}
    return {name: (x, y) for name, (x, y) in moved.items()}


def of_sample(metadata: Mapping[str, Any], size: int, crop: int | None = None) -> Points:
    """Landmarks of an image of the shards, from its metadata; CelebA's usual ones where it has not all five."""
    width, height = (metadata.get(key, 0) for key in ("width", "height"))
    if not all(_is_number(side) and side > 0 for side in (width, height)):
        return usual(size, size, size)
    return known_of_sample(metadata, size, crop) or usual(width, height, size, crop)


def known_of_sample(metadata: Mapping[str, Any], size: int, crop: int | None = None) -> Points | None:
    """As `of_sample`; None where the metadata has not all five, or not the size of their picture."""
    landmarks, width, height = (metadata.get(key, 0) for key in ("landmarks", "width", "height"))
    if not all(_is_number(side) and side > 0 for side in (width, height)):
        return None
    if not isinstance(landmarks, dict) or _wrong(landmarks):
        return None
    return fitted(landmarks, width, height, size, crop)


def usual(width: int, height: int, size: int, crop: int | None = None) -> Points:
    """Landmarks of a photograph that is taken to be aligned as CelebA's are."""
    return fitted(regions.celeba(width, height), width, height, size, crop)


def of_photograph(
    photograph: Path, width: int, height: int, size: int, crop: int | None = None, given: Path | None = None
) -> Points | None:
    """Landmarks of a photograph in a file; None where none are known.

    Args:
        width, height: of the photograph as displayed.
        given: the file with its landmarks; None: the one of its name and the ending .json, where that has any.

    Raises:
        UserError: naming the file whose landmarks are missing or wrong.
    """
    beside = photograph.with_suffix(".json")
    path = given or beside
    if given is None and not beside.exists():
        return None
    try:
        metadata = files.read_json(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON of landmarks, as the shards' .json files are: {error}") from None
    metadata = metadata if isinstance(metadata, dict) else {}
    if given is None and not metadata.get("landmarks"):
        return None
    landmarks = _checked(path, metadata.get("landmarks"))
    measured = tuple(metadata.get(key, side) for key, side in (("width", width), ("height", height)))
    if measured != (width, height):
        raise UserError(
            f"{path}: its landmarks are of a picture of {measured[0]!r:.40} x {measured[1]!r:.40}, "
            f"but {photograph} is {width} x {height}"
        )
    return fitted(landmarks, width, height, size, crop)


def checked_frame(path: Path, frame: Any, size: int, crop: int | None = None) -> Points:
    """A bundle's frame: where its training images have the landmarks, in pixels of the square picture.

    Args:
        path: of the file that says so, for messages.
        frame: what it says; None, as in bundles that say nothing: CelebA's alignment.

    Raises:
        UserError: it is not five points in or near the picture.
    """
    if frame is None:
        return usual(*CELEBA_SIZE, size, crop)
    known = _checked(path, frame)
    points = {name: (float(known[name][0]), float(known[name][1])) for name in regions.POINTS}
    apart = points["righteye"][0] - points["lefteye"][0]
    if apart < 1 or any(not -size <= value <= 2 * size for point in points.values() for value in point):
        raise UserError(f"{path}: frame: these are not the landmarks of a face of {size} x {size}; export it anew")
    return points


def _checked(path: Path, landmarks: Any) -> Landmarks:
    if not isinstance(landmarks, dict):
        raise UserError(f"{path}: landmarks: {', '.join(regions.POINTS)} are needed, each as [x, y]")
    if wrong := _wrong(landmarks):
        raise UserError(f"{path}: landmarks.{wrong}")
    return landmarks


def _wrong(landmarks: dict[str, Any]) -> str | None:
    """What is wrong with them first."""
    for name in regions.POINTS:
        point = landmarks.get(name)
        if not _is_point(point):
            return f"{name}: [x, y] in pixels is needed, up to {LARGEST:,}, not {json.dumps(point)[:60]}"
    if landmarks["lefteye"] == landmarks["righteye"]:
        return "righteye: is the left eye's point, too"
    return None


def _is_point(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(each) for each in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
