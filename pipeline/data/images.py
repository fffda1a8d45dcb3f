"""Photographs as tensors: decode, crop, resize, scale to [-1, 1] and back."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

from pipeline.common.errors import UserError
from pipeline.data import orientation

MIN_SIDE = 16
"""Pictures with a side of fewer pixels are refused: there is no face in them."""
NATIVE_RESIZE = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
"""Whether torch resizes uint8 as it is, without a detour over float32; torchvision asks the same."""


@dataclass(frozen=True)
class Crop:
    """From displayed pixels of the original to pixels of the crop: shift by (left, top), then scale."""

    left: int
    top: int
    scale: float

    def point(self, x: float, y: float) -> list[float]:
        """Pixel coordinates (centres at whole numbers) in the crop, to a hundredth of a pixel."""
        return [
            round((x - self.left + 0.5) * self.scale - 0.5, 2),
            round((y - self.top + 0.5) * self.scale - 0.5, 2),
        ]


def decode(data: bytes | memoryview, name: object) -> Tensor:
    """RGB (3, H, W) uint8 of an encoded photograph; its EXIF orientation is applied.

    Args:
        data: JPEG (any colour space), or anything else Pillow reads; writable memory is not copied.
        name: what messages call it; turned into text only then.

    Raises:
        UserError: if it does not decode completely, or a side is under `MIN_SIDE`.
    """
    try:
        if data[:2] == b"\xff\xd8":
            writable = isinstance(data, memoryview) and not data.readonly
            buffer = torch.frombuffer(data if writable else bytearray(data), dtype=torch.uint8)
            image: Tensor = decode_jpeg(buffer, ImageReadMode.RGB, apply_exif_orientation=True)
        else:
            with Image.open(io.BytesIO(data)) as picture:
                image = from_pillow(picture, name)
    except UserError:
        raise
    except Exception:  # Pillow's decoders raise whatever they trip over in damaged input
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
    return torch.from_numpy(np.array(orientation.upright(picture).convert("RGB"))).permute(2, 0, 1)


def fit(image: Tensor, size: int, crop: int | None = None, out: Tensor | None = None) -> Tensor:
    """Centre-crop a square of `crop` pixels (None: the largest), then resize with antialiasing.

    (3, H, W) uint8 -> (3, size, size) uint8, written to `out` if given.
    """
    height, width = image.shape[1:]
    side = min(crop or height, height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    image = image[:, top : top + side, left : left + side]
    out = torch.empty((3, size, size), dtype=torch.uint8) if out is None else out
    if side == size:
        return out.copy_(image)
    if not NATIVE_RESIZE:
        return out.copy_(resize(image, [size, size], antialias=True))
    # What torchvision calls, without its 20 us of questions and a copy.
    torch.ops.aten._upsample_bilinear2d_aa.out(image[None], [size, size], False, None, None, out=out[None])
    return out


def normalise(images: Tensor) -> Tensor:
    """uint8 -> torch's default dtype, float32 unless set, in [-1, 1]."""
    return images.to(torch.get_default_dtype()) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8, rounded and clamped; the inverse of `normalise`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pillow(image: Tensor) -> Image.Image:
    """(3, H, W) uint8 -> a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
