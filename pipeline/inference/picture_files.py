"""Pictures on disk: what an ending means, what a PNG says of itself, and moving pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.data import images


class Format(NamedTuple):
    name: str
    """Pillow's."""
    most: int
    """Pixels of a side that it can store."""
    options: Mapping[str, Any]
    """For Pillow."""


_JPEG = Format("JPEG", 65_500, {"quality": 95, "subsampling": 0})  # text stays sharp
STILL = {".png": Format("PNG", 2**31 - 1, {}), ".jpg": _JPEG, ".jpeg": _JPEG}
MOVING = {".webp": Format("WEBP", 16_383, {"quality": 90}), ".gif": Format("GIF", 65_535, {})}
FRAME_MILLISECONDS, REST_MILLISECONDS = 80, 800
"""How long a moving picture shows each frame, and the two at its ends."""


def check_ending(path: Path, known: Mapping[str, Format] = STILL) -> Format:
    """What a file of this name is written as.

    Raises:
        UserError: its ending is none that we write.
    """
    found = known.get(path.suffix.lower())
    if found is None:
        raise UserError(f"{path}: ends with none of {', '.join(known)}; name a file that does")
    return found


def save(picture: Image, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write a PNG or a JPEG, whole or not at all.

    Args:
        about: what a PNG says of itself, name -> text; a JPEG has no place for that.

    Raises:
        UserError: its ending is another, or it cannot be written.
    """
    form = check_ending(path)
    texts = PngInfo()
    for name, text in (about or {}).items():
        texts.add_text(name, text)
    _write(picture, path, form, {"pnginfo": texts} if form.name == "PNG" else form.options)


def save_moving(frames: Sequence[Image], path: Path) -> None:
    """Write pictures of one size as a moving one that runs through them and back, for ever, as WebP or GIF.

    Raises:
        UserError: its ending is another, or it cannot be written.
    """
    form = check_ending(path, MOVING)
    there_and_back = [*frames, *frames[-2:0:-1]]
    shown = [FRAME_MILLISECONDS] * len(there_and_back)
    shown[0] = shown[len(frames) - 1] = REST_MILLISECONDS
    options = {"save_all": True, "append_images": there_and_back[1:], "duration": shown, "loop": 0}
    _write(frames[0], path, form, {**form.options, **options})


def _write(picture: Image, path: Path, form: Format, options: Mapping[str, Any]) -> None:
    if max(picture.size) > form.most:
        wide, high = picture.size
        raise UserError(f"{path}: {wide:,} x {high:,} pixels; {form.name} has at most {form.most:,} a side")
    encoded = images.encoded(picture, form.name, **options)
    try:
        with files.replacing(path) as temporary:
            temporary.write_bytes(encoded)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
