"""How a photograph is to be turned, as torchvision's JPEG decoder sees it: by the orientation in the EXIF block alone.

Pillow's own `exif_transpose` also heeds XMP, and rewrites the whole block, which fails on tags of an odd type.
"""

from contextlib import suppress

from PIL import Image
from PIL.Image import Transpose

_TAG = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def _turn(picture: Image.Image) -> Transpose | None:
    exif = Image.Exif()
    with suppress(Exception):  # Pillow raises whatever it trips over in a damaged block
        exif.load(picture.info.get("exif", b""))
        return _TURNS.get(exif.get(_TAG, 1))
    return None


def displayed_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height in pixels once the picture is `upright`."""
    width, height = picture.size
    turned = _turn(picture) in (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)
    return (height, width) if turned else (width, height)


def upright(picture: Image.Image) -> Image.Image:
    """The picture as it is displayed; the same object if it is so already."""
    turn = _turn(picture)
    return picture if turn is None else picture.transpose(turn)
