"""Photographs as tensors: decode, crop, resize, scale to [-1, 1] and back."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import center_crop, resize

from pipeline.errors import UserError

MIN_SIDE = 16
"""Pictures with a side of fewer pixels are refused: there is no face in them."""


def decode(data: bytes, name: object) -> Tensor:
    """RGB (3, H, W) uint8 of an encoded photograph; its EXIF orientation is applied.

    Args:
        data: JPEG (any colour space), or anything else Pillow reads.
        name: what messages call it; turned into text only then.

    Raises:
        UserError: if it does not decode completely, or a side is under `MIN_SIDE`.
    """
    try:
        if data[:2] == b"\xff\xd8":
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            image: Tensor = decode_jpeg(buffer, ImageReadMode.RGB, apply_exif_orientation=True)
        else:
            with Image.open(io.BytesIO(data)) as picture:
                image = from_pillow(picture, name)
    except (RuntimeError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError(f"{name}: not a readable image (JPEG or PNG), or cut short") from None
    if min(image.shape[1:]) < MIN_SIDE:
        raise UserError(f"{name}: {image.shape[2]} x {image.shape[1]} pixels; a side needs at least {MIN_SIDE}")
    return image


def read(path: Path) -> Tensor:
    """RGB (3, H, W) uint8 of a photograph in a file.

    Raises:
        UserError: if it is not there or does not decode.
    """
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def from_pillow(picture: Image.Image, name: object = "picture") -> Tensor:
    """Any Pillow image of 8 bits per channel -> RGB (3, H, W) uint8; its EXIF orientation is applied.

    Raises:
        UserError: if it has more bits: Pillow would clip it to white.
    """
    if picture.mode.startswith(("I", "F")):
        raise UserError(f"{name}: mode {picture.mode} has more than 8 bits per channel; convert it to 8-bit RGB")
    return torch.from_numpy(np.array(ImageOps.exif_transpose(picture).convert("RGB"))).permute(2, 0, 1)


def fit(image: Tensor, size: int, crop: int | None = None) -> Tensor:
    """Centre-crop a square of `crop` pixels (None: the largest), then resize with antialiasing.

    (3, H, W) uint8 -> (3, size, size) uint8.
    """
    side = min(crop or image.shape[1], *image.shape[1:])
    image = center_crop(image, [side, side])
    if side != size:
        image = resize(image, [size, size], antialias=True)
    fitted: Tensor = image.contiguous()
    return fitted


def normalise(images: Tensor) -> Tensor:
    """uint8 -> torch's default dtype, float32 unless set, in [-1, 1]."""
    return images.to(torch.get_default_dtype()) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8, rounded and clamped; the inverse of `normalise`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pillow(image: Tensor) -> Image.Image:
    """(3, H, W) uint8 -> a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
