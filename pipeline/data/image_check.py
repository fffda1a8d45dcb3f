"""One image on its way into a shard: is it whole, and, where asked for, its centre square at another size."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torchvision.io  # noqa: F401 (what `decode` needs, loaded once before workers are forked)

from pipeline.data import images
from pipeline.data.images import Crop

EXTENSIONS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}
"""First two bytes of a file -> its ending in a shard."""


class EncodedImage(NamedTuple):
    """Image bytes that decode; `width` and `height` in pixels, as displayed (EXIF orientation applied)."""

    data: bytes
    extension: str
    width: int
    height: int


def check(data: bytes, name: str) -> EncodedImage:
    """Decode the whole of `data` once, as training will, and return it untouched. Raises UserError as `decode`."""
    height, width = images.decode(data, name).shape[1:]
    return EncodedImage(data, EXTENSIONS[data[:2]], width, height)


def centre_square(data: bytes, name: str, size: int, crop: int | None, quality: int) -> tuple[EncodedImage, Crop]:
    """Cut the centre square, resize it to `size` x `size` (antialiased) and encode it as JPEG.

    Args:
        crop: side of the square in pixels of the original; None, or more than the image has: its shorter side.
        quality: of the JPEG, 1 to 100. Colour is kept at full resolution.

    Raises:
        UserError: as `check`.
    """
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # a worker: there is one per processor
    image = images.decode(data, name)
    top, left, side = images.centre(image, crop)
    square = images.to_pillow(images.fit(image, size, crop))
    data = images.encoded(square, "JPEG", quality=quality, subsampling=0)
    return EncodedImage(data, "jpg", size, size), Crop(left, top, size / side)


@contextmanager
def silent() -> Iterator[None]:
    """Keep libjpeg from writing about damage to the terminal: it does not name the file, the UserError does."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
