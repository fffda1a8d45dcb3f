"""One encoded image: is it whole, and, where asked for, its centre square at another size."""

import io
import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.data import orientation
from pipeline.data.images import Crop

MINIMUM_SIDE = 16
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}
# Modes that every reader turns into RGB without loss of range.
PLAIN_MODES = frozenset({"RGB", "L", "RGBA", "CMYK", "P", "LA", "1"})

_JPEG_START, _JPEG_SCAN, _JPEG_EXIF = b"\xff\xd8", 0xFFDA, 0xFFE1
_SCAN_BYTES = _JPEG_SCAN.to_bytes(2, "big")
_JPEG_FRAMES = frozenset({0xFFC0, 0xFFC1, 0xFFC2})  # baseline, extended, progressive
# Tables, restart interval, applications' data but EXIF, comment.
_JPEG_SKIPPED = frozenset({0xFFC4, 0xFFDB, 0xFFDD, *range(0xFFE0, 0xFFF0), 0xFFFE}) - {_JPEG_EXIF}
_JPEG_END_MARKER = 0xFFD9
_JPEG_END = _JPEG_END_MARKER.to_bytes(2, "big")
_JPEG_BETWEEN_SCANS = _JPEG_SKIPPED | {_JPEG_SCAN, _JPEG_EXIF, 0xFFDC}  # and the number of lines
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # neither a stuffed byte nor a restart
_SEGMENT, _FRAME = struct.Struct(">HH"), struct.Struct(">BHHB")
_MOST_SEGMENTS = 1000
_USUAL_PIXELS = 2**26  # Pillow refuses far larger ones


class ImageRejected(Exception):
    """Why an image cannot be used, in a few words."""


class EncodedImage(NamedTuple):
    """Image bytes that decode; `width` and `height` in pixels, as displayed (EXIF orientation applied)."""

    data: bytes
    extension: str
    width: int
    height: int


def check(data: bytes) -> EncodedImage:
    """Decode the whole of `data` once and return it untouched, described; a JPEG in grey.

    Raises:
        ImageRejected: it is not a JPEG or PNG, is cut or damaged, is too small, or cannot become 8-bit RGB.
    """
    return _described(_open(data, _load_grey), data)


def describe(data: bytes) -> EncodedImage:
    """As `check`, but read the header alone: damage behind it is not noticed.

    Raises:
        ImageRejected: the header is damaged, or says what `check` rejects.
    """
    # Images of one encoder often have one header, up to where their scan begins; by chance that stands before, too.
    header = data[: data.find(_SCAN_BYTES) + _SEGMENT.size]
    size = _known_jpeg_size(header) or _plain_jpeg_size(data)
    return EncodedImage(data, "jpg", *size) if size else _described(_open(data, None), data)


def _described(image: Image.Image, data: bytes) -> EncodedImage:
    if image.format == "PNG" and data[24] == 16:
        raise ImageRejected("16 bits per channel; set an image size so that it is re-encoded")
    return EncodedImage(data, EXTENSIONS[str(image.format)], *orientation.displayed_size(image))


def centre_square(data: bytes, size: int, crop: int | None, quality: int) -> tuple[EncodedImage, Crop]:
    """Cut the centre square, resize it to `size` x `size` (antialiased) and encode it as JPEG.

    Args:
        crop: side of the square in pixels of the original; None, or more than the image has: its shorter side.
        quality: of the JPEG, 1 to 100. Colour is kept at full resolution.

    Raises:
        ImageRejected: as `check`.
    """
    image = orientation.upright(_open(data, _load)).convert("RGB")
    side = min(*image.size, crop or max(image.size))
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)  # as `pipeline.data.images.fit`
    box = (left, top, left + side, top + side)
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    stream = io.BytesIO()
    resized.save(stream, "JPEG", quality=quality, subsampling=0)
    return EncodedImage(stream.getvalue(), "jpg", size, size), Crop(left, top, size / side)


@lru_cache(maxsize=64)
def _known_jpeg_size(header: bytes) -> tuple[int, int] | None:
    return _plain_jpeg_size(header)


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG with whole headers and no EXIF; None: ask Pillow, which is ten times as slow."""
    size, position = None, 2
    if not data.startswith(_JPEG_START):
        return None
    for _ in range(_MOST_SEGMENTS):
        if position + 4 > len(data):
            return None
        marker, length = _SEGMENT.unpack_from(data, position)
        if length < 2:
            return None
        if marker in _JPEG_SKIPPED:
            pass
        elif marker in _JPEG_FRAMES:
            if length < 8 or position + 2 + length > len(data):
                return None
            bits, height, width, layers = _FRAME.unpack_from(data, position + 4)
            if bits != 8 or layers not in (1, 3, 4):
                return None
            size = width, height
        elif marker == _JPEG_SCAN:
            break
        elif marker != _JPEG_EXIF or data.startswith(b"Exif\0\0", position + 4):
            return None
        position += 2 + length
    else:
        return None
    usual = size and min(size) >= MINIMUM_SIDE and size[0] * size[1] <= _USUAL_PIXELS
    return size if usual else None


def _load_grey(image: Image.Image) -> None:
    """Decode without making colours of a JPEG's: half the time, and all that can fail is done."""
    # libjpeg enlarges colours by whole numbers only, and complains of others only where it makes them.
    if isinstance(image, JpegImageFile) and {1, 2, 4}.issuperset(part for layer in image.layer for part in layer[1:3]):
        image.draft("L", None)
    image.load()


def _load(image: Image.Image) -> None:
    image.load()


def _open(data: bytes, load: Callable[[Image.Image], object] | None) -> Image.Image:
    """The image, decoded by `load`; None leaves its pixels alone."""
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
        # A PNG's orientation may stand behind its pixels.
        if load is None and image.format == "PNG" and b"eXIf" in data:
            load = _load
        if load is not None:
            load(image)
    except ImageRejected:
        raise
    except UnidentifiedImageError:
        raise ImageRejected("not a JPEG or PNG image") from None
    except Exception as error:  # Pillow's decoders raise whatever they trip over in damaged input
        raise ImageRejected(f"cannot be decoded: {error}") from None
    if load is not None and image.format != "PNG":
        _check_scans(data)
    return image


def _check_scans(data: bytes) -> None:
    """Find what Pillow takes and libjpeg's other users (torchvision) refuse: scans without end, or markers in them."""
    last = data.rfind(_SCAN_BYTES) + len(_SCAN_BYTES)
    end = data.find(_JPEG_END, last)
    if end >= 0 and data.count(b"\xff", last, end) == data.count(b"\xff\x00", last, end):
        return  # as nearly always; else there are restarts or damage, or more than the picture is in the file
    position, scanning = 2, False
    while found := _MARKER.search(data, position):
        marker = 0xFF00 + found[1][0]
        if marker == _JPEG_END_MARKER:
            return
        scanning |= marker == _JPEG_SCAN
        if scanning and marker not in _JPEG_BETWEEN_SCANS:
            raise ImageRejected("cannot be decoded: damaged within the JPEG's scan")
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    raise ImageRejected("cannot be decoded: the end of the JPEG is missing")
