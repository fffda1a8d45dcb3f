"""What people hand over as photographs, as the tensors that models take."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.data import images

Photograph = Path | str | Image.Image | NDArray[np.uint8] | Tensor
"""Where a photograph is, or one of any size: a Pillow picture, (H, W, 3) uint8; or (3, S, S) or (B, 3, S, S) in
[-1, 1]."""
Photographs = Photograph | Sequence[Photograph]
"""One, or a list of them, which is a batch."""
SLACK = 1e-3
"""How far beyond [-1, 1] resizing and rounding may bring an image: less than a level of 255."""


def load(photographs: Photographs, size: int, crop: int | None) -> Tensor:
    """(B, 3, S, S) in [-1, 1]; photographs are cropped and resized as in training.

    Args:
        size: S, pixels. crop: see `images.fit`.

    Raises:
        UserError: if one cannot be read, or an array or a tensor has another shape, type or range.
    """
    if isinstance(photographs, list | tuple):
        if not photographs:
            raise UserError("no photograph in the list; at least one is needed")
        loaded = [load(each, size, crop) for each in photographs]
        return torch.cat([each.to(loaded[0]) for each in loaded])
    if isinstance(photographs, Tensor):
        return _checked(photographs, size)
    return images.normalise(images.fit(_pixels(photographs), size, crop))[None]


def _pixels(photograph: object) -> Tensor:
    """(3, H, W) uint8."""
    if isinstance(photograph, Path | str):
        return images.read(Path(photograph))
    if isinstance(photograph, Image.Image):
        return images.from_pillow(photograph)
    if not isinstance(photograph, np.ndarray):
        kind = type(photograph).__name__
        raise UserError(f"a photograph of type {kind}: a path, a Pillow picture, a NumPy array or a tensor is needed")
    if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3:
        given = f"shape {photograph.shape} and type {photograph.dtype}"
        raise UserError(f"an image array of {given}: (H, W, 3) of uint8 is needed, a list of them for several")
    return images.from_pillow(Image.fromarray(photograph), "array")


def _checked(image: Tensor, size: int) -> Tensor:
    batch = image if image.dim() == 4 else image[None]
    wanted = f"this bundle takes (B, 3, {size}, {size}) in [-1, 1]"
    if batch.shape[1:] != (3, size, size) or not len(batch):
        raise UserError(f"an image tensor of shape {tuple(image.shape)}: {wanted}")
    if not image.is_floating_point():
        raise UserError(f"an image tensor of {image.dtype}: {wanted}; `x / 127.5 - 1` brings 0 to 255 there")
    if not (batch.abs() <= 1 + SLACK).all():
        low, high = (f"{end.item():.6g}" for end in batch.aminmax())
        fix = "`x / 127.5 - 1` brings 0 to 255 there, `2 * x - 1` brings 0 to 1"
        raise UserError(f"an image tensor with values from {low} to {high}: {wanted}; {fix}")
    return batch


def shares(name: str, given: Any) -> Tensor:
    """Numbers in [0, 1] as a float32 tensor, of the shape that they have.

    Args:
        name: what they are, for messages.

    Raises:
        UserError: if they are no numbers, or outside of [0, 1].
    """
    try:
        values = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name}: {given!r:.60}: numbers in [0, 1] are needed") from None
    outside = values[~((values >= 0) & (values <= 1))]
    if len(outside):
        raise UserError(f"{name}: {outside[0].item():.8g} is outside [0, 1]")
    return values


def common_length(names: str, lengths: Iterable[int]) -> int:
    """The length of batches that go together: each is as long, or 1.

    Raises:
        UserError: if they are not.
    """
    longer = set(lengths) - {1}
    if len(longer) > 1:
        raise UserError(f"{names}: batches of {', '.join(map(str, sorted(longer)))}; make them equal, or 1")
    return max(longer, default=1)
