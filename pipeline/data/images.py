"""Photographs as tensors: check the header, decode, crop, resize, scale to [-1, 1] and back.

Every picture from outside passes `open_picture`: JPEG, PNG or WebP, of a size that fits memory.
"""

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose
from torch import Tensor
from torch.nn import functional

from pipeline.common import files
from pipeline.common.errors import UserError

MIN_SIDE = 16
"""Pictures with a side of fewer pixels are refused: there is no face in them."""
MAX_PIXELS = 2**26
"""Pictures of more are refused before they are decoded: 8,192 x 8,192, above what cameras make, take 200 MB as RGB."""
MAX_SCANNED = 2**30
"""Pixels times scans of a progressive JPEG: a camera's has ten scans, a made one thousands, each a pass over all."""
FORMATS = ("JPEG", "PNG", "WEBP")
"""What Pillow may use to read a file: others of its readers start programs (Ghostscript for EPS) or know no limits."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS refuses these pictures
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd EXIF blocks and palettes: what matters is an error


@dataclass(frozen=True)
class Crop:
    """From pixels of the original, as displayed, to those of the crop: shift by (left, top), then scale."""

    left: int
    top: int
    scale: float

    def point(self, x: float, y: float) -> list[float]:
        """Pixel coordinates (centres at whole numbers) in the crop, to a hundredth of a pixel."""
        offsets = (x - self.left, y - self.top)
        return [round((offset + 0.5) * self.scale - 0.5, 2) for offset in offsets]


def open_picture(data: bytes, name: object) -> Image.Image:
    """An encoded photograph whose header was read and found usable; its pixels are not decoded yet.

    Raises:
        UserError: it is no JPEG, PNG or WebP, too small or too large, or has more than 8 bits per channel.
    """
    if not data:
        raise _unreadable(name, "the file is empty")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unreadable(name, "neither JPEG, PNG nor WebP, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # Pillow raises all kinds of errors on damaged input
        raise _unreadable(name, error) from None
    _check(picture, name)
    scans = data.count(b"\xff\xda")
    if picture.format in ("JPEG", "MPO") and picture.width * picture.height * scans > MAX_SCANNED:
        raise UserError(f"{name}: {picture.width} x {picture.height} pixels in {scans:,} scans; save it anew")
    return picture


def decode(data: bytes, name: object) -> Tensor:
    """RGB (3, H, W) uint8 of an encoded photograph; its EXIF orientation is applied.

    JPEG by torchvision, twice as fast as Pillow, which gives the same pixels and decodes the other formats.

    Raises:
        UserError: as `open_picture`, or it does not decode completely.
    """
    picture = open_picture(data, name)
    if picture.format not in ("JPEG", "MPO"):
        return from_pillow(picture, name)
    from torchvision.io import ImageReadMode, decode_jpeg  # takes a second, which `latentfuse fuse` does not need

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        image: Tensor = decode_jpeg(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise _unreadable(name, error) from None
    return image


def read(path: Path) -> Tensor:
    """As `decode`, of a file, and by Pillow alone: without loading torchvision."""
    try:
        data = files.read_bytes(path, files.MOST_IMAGE)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return from_pillow(open_picture(data, path), path)


def from_pillow(picture: Image.Image, name: object = "picture") -> Tensor:
    """Any Pillow image of 8 bits per channel -> RGB (3, H, W) uint8; its EXIF orientation is applied.

    Raises:
        UserError: it is too small or too large, has more bits (Pillow would clip it to white), or does not decode.
    """
    _check(picture, name)
    try:
        picture.load()  # a PNG's orientation may stand behind its pixels
        rgb = np.array(_upright(picture).convert("RGB"))
    except Exception as error:  # Pillow raises all kinds of errors on damaged input
        raise _unreadable(name, error) from None
    return torch.from_numpy(rgb).permute(2, 0, 1)


def fit(image: Tensor, size: int, crop: int | None = None) -> Tensor:
    """Centre-crop a square of `crop` pixels (None: the largest), then resize with antialiasing.

    (3, H, W) uint8 -> (3, size, size) uint8.
    """
    top, left, side = centre(image, crop)
    square = image[:, top : top + side, left : left + side]
    if side != size:  # with the channels innermost, as they are decoded, which is a quarter faster
        batch = square.movedim(0, -1)[None].movedim(-1, 1)
        square = functional.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)[0]
    return square


def centre(image: Tensor, crop: int | None) -> tuple[int, int, int]:
    """Top, left and side in pixels of the centre square that `fit` cuts out of (3, H, W)."""
    height, width = image.shape[1:]
    side = min(crop or height, height, width)
    return round((height - side) / 2), round((width - side) / 2), side


def normalise(images: Tensor) -> Tensor:
    """uint8 -> torch's default dtype, float32 unless set, in [-1, 1]."""
    return images.to(torch.get_default_dtype()) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8, rounded and clamped; the inverse of `normalise`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pillow(image: Tensor) -> Image.Image:
    """(3, H, W) uint8 -> a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    """A picture as a file, to be written at once: Pillow writes a JPEG to a full disk in part, without an error.

    Args:
        form, options: Pillow's format, such as JPEG, and what it takes for that.
    """
    stream = io.BytesIO()
    picture.save(stream, format=form, **options)
    return stream.getvalue()


def _check(picture: Image.Image, name: object) -> None:
    width, height = picture.size
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{name}: {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} wanted")
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: {width} x {height} pixels, more than {MAX_PIXELS:,}; make it smaller")
    if picture.mode.startswith(("I", "F")):
        raise UserError(f"{name}: mode {picture.mode} has more than 8 bits per channel; convert it to 8-bit RGB")


def _unreadable(name: object, error: Exception | str) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{name}: not a readable image: {reason[:200]}")


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as it is displayed, by the EXIF block alone, as torchvision's decoder turns it.

    Pillow's own `exif_transpose` also obeys XMP, and rewrites the whole block, which fails on tags of an odd type.
    """
    exif, turn = Image.Exif(), None
    with suppress(Exception):  # Pillow raises all kinds of errors on a damaged block
        exif.load(picture.info.get("exif", b""))
        turn = _TURNS.get(exif.get(_ORIENTATION, 1))
    return picture if turn is None else picture.transpose(turn)
