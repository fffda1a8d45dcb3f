"""One encoded image: is it whole, and, where asked for, its centre square at another size."""

import io
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

MINIMUM_SIDE = 16
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}
# Modes that every reader turns into RGB without loss of range.
PLAIN_MODES = frozenset({"RGB", "L", "RGBA", "CMYK", "P", "LA", "1"})

_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = frozenset({5, 6, 7, 8})  # orientations that swap width and height


class ImageRejected(Exception):
    """Why an image cannot be used, in a few words."""


@dataclass(frozen=True)
class EncodedImage:
    """Image bytes that decode; `width` and `height` in pixels, as displayed (EXIF orientation applied)."""

    data: bytes
    extension: str
    width: int
    height: int


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


def check(data: bytes) -> EncodedImage:
    """Decode the whole of `data` once and return it untouched, described.

    Raises:
        ImageRejected: it is not a JPEG or PNG, is cut or damaged, is too small, or cannot become 8-bit RGB.
    """
    image = _decode(data)
    if image.format == "PNG" and data[24] == 16:
        raise ImageRejected("16 bits per channel; set an image size so that it is re-encoded")
    width, height = image.size
    if "exif" in image.info and image.getexif().get(_ORIENTATION) in _TURNED:
        width, height = height, width
    return EncodedImage(data, EXTENSIONS[str(image.format)], width, height)


def centre_square(data: bytes, size: int, crop: int | None, quality: int) -> tuple[EncodedImage, Crop]:
    """Cut the centre square, resize it to `size` x `size` (antialiased) and encode it as JPEG.

    Args:
        crop: side of the square in pixels of the original; None, or more than the image has: its shorter side.
        quality: of the JPEG, 1 to 100. Colour is kept at full resolution.

    Raises:
        ImageRejected: as `check`.
    """
    image = ImageOps.exif_transpose(_decode(data))
    image = image.convert("RGB")
    side = min(*image.size, crop or max(image.size))
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)  # as `pipeline.images.fit`
    box = (left, top, left + side, top + side)
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    stream = io.BytesIO()
    resized.save(stream, "JPEG", quality=quality, subsampling=0)
    return EncodedImage(stream.getvalue(), "jpg", size, size), Crop(left, top, size / side)


def _decode(data: bytes) -> Image.Image:
    if not data:
        raise ImageRejected("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if min(image.size) < MINIMUM_SIDE:
            raise ImageRejected(
                f"{image.width} x {image.height} pixels; at least {MINIMUM_SIDE} x {MINIMUM_SIDE} wanted"
            )
        if image.mode not in PLAIN_MODES:
            raise ImageRejected(f"mode {image.mode} has more than 8 bits per channel; convert it to 8-bit RGB")
        image.load()
    except ImageRejected:
        raise
    except UnidentifiedImageError:
        raise ImageRejected("not a JPEG or PNG image") from None
    except Exception as error:  # Pillow's decoders raise whatever they trip over in damaged input
        raise ImageRejected(f"cannot be decoded: {error}") from None
    # Pillow takes a JPEG whose end marker is cut off; libjpeg's other users (torchvision) refuse it.
    if image.format != "PNG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ImageRejected("cannot be decoded: the end of the JPEG is missing")
    return image
