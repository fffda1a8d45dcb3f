"""What `pipeline.load_bundle` gives: a bundle that also makes pictures, for people who work in Python."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.common.devices import usable_device
from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.inference import fuse, hub, inputs
from pipeline.inference.bundle import Bundle, Lambda, Mask
from pipeline.inference.inputs import Photographs
from pipeline.models import latents, regions

Several = Sequence[Photographs] | NDArray[np.uint8] | Tensor
"""K photographs, each one or a batch; or K latents."""
Weights = Sequence[float] | Sequence[Sequence[float]] | NDArray[np.floating[Any]] | Tensor
"""(K,) or (K, N)."""
SUM_SLACK = 1e-4
"""How far from 1 the weights of a blend may add up."""
MOST_SHOWN = 1000
"""Faces in a row of a strip or a grid."""
SHOWN = 192
"""Pixels that a face has at least where a notebook shows it."""


class Pictures(list[Image.Image]):
    """Pillow pictures of one size; a notebook shows them side by side, small ones enlarged."""

    def _repr_png_(self) -> bytes:
        row = Image.fromarray(np.concatenate([np.asarray(each) for each in self], axis=1))
        scale = max(1, -(-SHOWN // row.height))
        stream = io.BytesIO()
        row.resize((scale * row.width, scale * row.height), Image.Resampling.BICUBIC).save(stream, "PNG")
        return stream.getvalue()


class LoadedBundle(Bundle):
    """A bundle as `load_bundle` gives it.

    With `as_images` a method returns Pillow pictures, one for each image of the batch, in place of a tensor.
    """

    @overload
    def generate(self, z: Tensor, *, as_images: Literal[False] = False) -> Tensor: ...
    @overload
    def generate(self, z: Tensor, *, as_images: Literal[True]) -> Pictures: ...
    def generate(self, z: Tensor, *, as_images: bool = False) -> Tensor | Pictures:
        """G(Z), as `Bundle.generate`."""
        return _as_asked(super().generate(z), as_images)

    @overload
    def fuse(
        self,
        a: Photographs,
        b: Photographs,
        lambda_: Lambda,
        mask: Mask | None = None,
        *,
        as_images: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def fuse(
        self, a: Photographs, b: Photographs, lambda_: Lambda, mask: Mask | None = None, *, as_images: Literal[True]
    ) -> Pictures: ...
    def fuse(
        self,
        a: Photographs,
        b: Photographs,
        lambda_: Lambda,
        mask: Mask | None = None,
        *,
        as_images: bool = False,
    ) -> Tensor | Pictures:
        """C of A and B, as `Bundle.fuse`."""
        return _as_asked(super().fuse(a, b, lambda_, mask), as_images)

    @overload
    def blend(
        self,
        photographs: Several,
        weights: Weights,
        *,
        as_images: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def blend(
        self,
        photographs: Several,
        weights: Weights,
        *,
        as_images: Literal[True],
    ) -> Pictures: ...
    def blend(
        self,
        photographs: Several,
        weights: Weights,
        *,
        as_images: bool = False,
    ) -> Tensor | Pictures:
        """One face of K: G(sum over k of W_k o E(I_k)). `fuse` is its case of two, with equal bits.

        Args:
            photographs: K of them, each one or a batch; or what `encode` gives for each, (B, C, S/32, S/32).
            weights: (K,), or (K, N) for each element its own; in [0, 1], adding up to 1 over K. The last row is taken
                as what the others leave.

        Returns:
            (B, 3, S, S) in [-1, 1].

        Raises:
            UserError: for weights of another shape or sum, batches of unequal length, or as `load_image`.
        """
        if isinstance(photographs, str) or not isinstance(photographs, Sequence | np.ndarray | Tensor):
            raise UserError("blend: a list of photographs is needed, as [a, b, c]")
        several = photographs.split(1) if isinstance(photographs, Tensor) else list(photographs)
        checked = self._checked_weights(weights, len(several))
        encoded = [self._latents(each) for each in several]
        inputs.common_length("photographs", map(len, encoded))
        blended = latents.blend(encoded, checked, self.model.sizes)
        return _as_asked(super().generate(blended), as_images)

    def _checked_weights(self, weights: Weights, count: int) -> Tensor:
        """(K, N) float32 on the device, of which each column adds up to 1."""
        values = inputs.shares("weights", weights)
        if values.dim() not in (1, 2) or not count or values.shape not in ((count,), (count, self.elements)):
            given = tuple(values.shape)
            raise UserError(
                f"weights: shape {given} for {count} photographs: ({count},) or ({count}, {self.elements}) is needed"
            )
        sums = values.sum(dim=0)
        if ((sums - 1).abs() > SUM_SLACK).any():
            wrong = sums.reshape(-1)[(sums.reshape(-1) - 1).abs().argmax()].item()
            raise UserError(f"weights: add up to {wrong:.6g}, not to 1; divide them by their sum over the photographs")
        rest = (1 - values[:-1].sum(dim=0, keepdim=True)).clamp(min=0)
        exact = torch.cat([values[:-1], rest])
        return exact.reshape(count, -1).expand(-1, self.elements).to(self.device)

    def preset(self, name: str) -> list[float]:
        """The Lambda that a name stands for: `content-style` takes the content of A and the style of B.

        Raises:
            UserError: if it is unknown, or not for this bundle.
        """
        return fuse.preset(name, self)

    def region(self, name: str, photograph: Path | str | None = None) -> Tensor:
        """The mask of a part of the face, for `fuse`: eyes, nose, mouth, hair, or the picture's left or right half.

        Args:
            photograph: A, where its landmarks are in a file beside it (docs/data.md); None: as faces usually lie in the
                bundle's training images.

        Returns:
            (S, S), 1 where B enters.

        Raises:
            UserError: if the name is unknown, or the region lies outside of the picture.
        """
        if photograph is not None:
            return fuse.named_region(self, name, Path(photograph)).mask
        if name not in regions.NAMES:
            raise UserError(f"region {name}: unknown; known are: {', '.join(regions.NAMES)}")
        mask = regions.mask(name, self.frame, self.image_size)
        if not mask.any():
            raise UserError(f"region {name}: lies outside of the pictures of this bundle")
        return mask.to(self.device)

    def strip(self, a: Photographs, b: Photographs, count: int = 6, mask: Mask | None = None) -> Image.Image:
        """A picture of each pair: A and B, and under them `count` fused faces that lead from A to B.

        Args:
            mask: as of `fuse`.

        Raises:
            UserError: as `fuse`, or for a count that is not from 2 to 1,000.
        """
        _check_count(count)
        first, second = self.load_image(a), self.load_image(b)
        length = inputs.common_length("a and b", (len(first), len(second)))
        pairs = zip(*(each.expand(length, -1, -1, -1).split(1) for each in (first, second)), strict=True)
        return fuse.strips(self, list(pairs), count, None if mask is None else fuse.Region(torch.as_tensor(mask)))

    def grid(self, a: Photographs, b: Photographs, count: int = 6) -> Image.Image:
        """A picture with a row for each element: it alone moves from A to B in `count` steps.

        Raises:
            UserError: as `fuse`, for more than one pair, or a count that is not from 2 to 1,000.
        """
        _check_count(count)
        first, second = self.load_image(a), self.load_image(b)
        if max(len(first), len(second)) > 1:
            raise UserError(f"grid: {max(len(first), len(second))} photographs; it shows one pair, so call it for each")
        return fuse.grid(self, first, second, count)


def load_bundle(place: Path | str, device: torch.device | str = "cpu") -> LoadedBundle:
    """Load a bundle that `latentfuse export` wrote.

    Args:
        place: its folder; or, where a string names no folder here, `owner/name` on the Hugging Face Hub.
        device: `cpu`, `cuda`, `cuda:1`.

    Raises:
        UserError: naming the file that is missing or damaged, or the weight that does not fit the configuration or is
            not a finite number; or if the Hub cannot be reached; or the device is not there.
    """
    device = usable_device(device)  # before anything is fetched
    if isinstance(place, str) and hub.NAME.fullmatch(place) and not Path(place).exists():
        place = hub.fetch(place)
    return LoadedBundle.load(place, device)


def _check_count(count: int) -> None:
    if not isinstance(count, int) or not 2 <= count <= MOST_SHOWN:
        raise UserError(f"count: {count!r:.40}: a whole number from 2 to {MOST_SHOWN} is needed")


def _as_asked(batch: Tensor, as_images: bool) -> Tensor | Pictures:
    """(B, 3, S, S) in [-1, 1] as it is, or as pictures."""
    return Pictures(images.to_pillow(each) for each in images.to_uint8(batch)) if as_images else batch
