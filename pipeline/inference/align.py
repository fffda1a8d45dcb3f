"""Photographs of one's own: faces found, brought to the frame that a bundle was trained in, and put back."""

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.inference import detector, landmarks, similarity
from pipeline.inference.bundle import Bundle
from pipeline.inference.landmarks import Points
from pipeline.inference.similarity import Similarity
from pipeline.models import losses

FAR_WORSE = 1.5
"""A photograph that loses so many times what held-out faces lose is not such a face."""
LEAST_CONTRAST = 1 / 255
"""Mean distance from the mean colour, in [-1, 1], of what is one colour to the eye."""


class Framed(NamedTuple):
    """A photograph as a bundle takes it."""

    photograph: Image.Image
    """As it is displayed."""
    image: Tensor
    """(1, 3, S, S) in [-1, 1]."""
    move: Similarity
    """From pixels of the photograph to those of the image."""
    points: Points | None
    """The landmarks by which it was aligned, in pixels of the image; None: its centre was cut out."""
    notice: str
    """One line for the user, or nothing."""


def framed(bundle: Bundle, path: Path, find: bool, given: Path | None = None) -> Framed:
    """A photograph in the bundle's frame.

    Args:
        find: align the face: by the landmarks of a file, else by those that the detector finds. Where there are none,
            and without `find`, the centre is cut out, as in training.
        given: file with its landmarks; None: the one beside it, where that has any (`landmarks.of_photograph`).

    Raises:
        UserError: it cannot be read, or the extra is not installed, or a file of landmarks is wrong.
    """
    photograph = images.to_pillow(images.read(path))
    fit = *photograph.size, bundle.image_size, bundle.config.data.crop
    cut, faces = similarity.centre_crop(*fit), []
    if find:
        known = landmarks.of_photograph(path, *fit, given)
        faces = [cut.inverse.points(known)] if known else detector.find_faces(photograph)
    if faces:
        width, height = photograph.size
        if given is not None and not any(0 <= x < width and 0 <= y < height for x, y in faces[0].values()):
            raise UserError(f"{given}: its landmarks all lie outside of {path}")
        move = similarity.between(faces[0], bundle.frame, given or path)
        picture = similarity.warp(photograph, move, (bundle.image_size, bundle.image_size))
        more = f"{path}: {len(faces)} faces; the largest is taken" if len(faces) > 1 else ""
        return Framed(photograph, bundle.load_image(picture), move, move.points(faces[0]), more)
    image = bundle.load_image(photograph)
    notice = f"{path}: no face found; its centre is taken as it is" if find else _strangeness(bundle, path, image)
    return Framed(photograph, image, cut, None, notice)


@torch.no_grad()
def lost(bundle: Bundle, image: Tensor) -> Tensor:
    """How much of an image is lost in A': L1 between A and A', as a share of that between A and its mean colour.

    Without the share, a small face in front of a plain wall would count as reconstructed well.

    Args:
        image: (B, 3, S, S) in [-1, 1].

    Returns:
        (B,): 0 for all kept, 1 for no better than one colour.
    """
    contrast = losses.reconstruction(image, image.mean(dim=(2, 3), keepdim=True).expand_as(image))
    error = losses.reconstruction(bundle.generate(bundle.encode(image)), image)
    return error / contrast.clamp(min=LEAST_CONTRAST)


def _strangeness(bundle: Bundle, path: Path, image: Tensor) -> str:
    """What to say of an image that the bundle does not know to reconstruct."""
    if bundle.reconstruction is None:
        return ""
    times = float(lost(bundle, image)) / bundle.reconstruction
    if times <= FAR_WORSE:
        return ""
    missing = "" if detector.installed() else f" (pip install '{detector.EXTRA}')"
    worse = f"reconstructed {times:.1f} times worse than the bundle's held-out faces"
    return f"{path}: {worse}; `fuse --align auto` finds a face and sets it straight{missing}"
