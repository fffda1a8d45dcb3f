"""Bundles: what a user of a trained model loads. Safetensors, JSON and a model card; no pickle.

BUNDLE/model.safetensors   encoder and generator, feature scales (several files and an index above a size)
BUNDLE/config.json         the training configuration, what the weights come from, and their SHA-256
BUNDLE/README.md           the model card
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.common import files
from pipeline.common.devices import usable_device
from pipeline.common.errors import UserError, one_line
from pipeline.config import load as configuration
from pipeline.config.schema import Config
from pipeline.inference import inputs, landmarks, weights
from pipeline.inference.inputs import Photographs
from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.models.perceptual import FeatureScales, PerceptualNetwork

FORMAT = 1
Lambda = float | Sequence[float] | Sequence[Sequence[float]] | NDArray[np.floating[Any]] | Tensor
"""One number for all elements; or (N,), (B, N), (N, h, w) or (B, N, h, w). In [0, 1]: 1 is A, 0 is B."""

Mask = NDArray[Any] | Tensor
"""(S, S) or (B, S, S) in [0, 1]: 1 where B enters."""


class Bundle:
    """A trained model, ready for use; `load` gives one in eval mode, without gradients.

    Training makes one around the module that it trains, to show what `fuse` will give.
    """

    def __init__(
        self,
        config: Config,
        model: FusionAutoencoder,
        scales: FeatureScales | None = None,
        trained: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.model = config, model
        self.scales = scales or FeatureScales()
        self.trained = trained or {}
        """Where the weights come from."""
        self.frame = landmarks.usual(*landmarks.CELEBA_SIZE, config.data.image_size, config.data.crop)
        """Where its training images have the landmarks, in pixels of the square picture."""
        self.reconstruction: float | None = None
        """What few held-out faces lose more of in A' (`align.lost`); None where it was not measured."""

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Self:
        """The bundle in a folder that `latentfuse export` wrote.

        Raises:
            UserError: naming the file that is missing or damaged, or the weight that does not fit the configuration or
                is not a finite number; or the device that is not there.
        """
        path, device = Path(path), usable_device(device)
        where = path / weights.CONFIG
        try:
            info = files.read_json(where)
            if info["format"] != FORMAT:
                raise UserError(f"{where}: bundle format {info['format']!r:.40}; this version reads {FORMAT}")
            values, trained = info["config"], info["trained"]
            if not isinstance(values, dict) or type(trained["step"]) is not int or not 0 <= trained["step"] < 10**12:
                raise ValueError
        except OSError as error:
            raise UserError(f"{path}: not a bundle: {where}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{where}: not the configuration of a bundle") from None
        config = configuration.validate_stored(values, str(where))
        modules = weights.load(path, config.model, config.data.image_size, info.get("sha256"))
        model, scales = modules["model"], modules["scales"]
        assert isinstance(model, FusionAutoencoder) and isinstance(scales, FeatureScales)
        bundle = cls(config, model.to(device).eval().requires_grad_(False), scales, trained)
        _set_measured(bundle, where, info)
        return bundle

    def __repr__(self) -> str:
        """What it is, in a line."""
        size, model = self.image_size, self.config.model
        trained = f"{self.trained.get('stage')!s:.20} step {self.trained['step']:,}" if self.trained else "in training"
        parameters = sum(each.numel() for each in self.model.parameters())
        return one_line(
            f"Bundle({size} x {size} pixels, {self.elements} elements (structure {model.structure}), "
            f"{parameters:,} parameters, {trained}, on {self.device})"
        )

    def to(self, device: torch.device | str) -> Self:
        """Move it to a device, as `cpu` or `cuda`; returns itself.

        Raises:
            UserError: if torch has no such device here.
        """
        self.model.to(usable_device(device))
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def image_size(self) -> int:
        return self.config.data.image_size

    @property
    def elements(self) -> int:
        return self.config.model.elements

    def perceptual(self, weights: str | None = None) -> PerceptualNetwork:
        """The perceptual network it was trained with, at the scales measured then.

        Args:
            weights: where the same weights are on this machine; None: where they were in training.

        Raises:
            UserError: if they are not there.
        """
        config = self.config.perceptual
        network = PerceptualNetwork(config.model_copy(update={"weights": weights}) if weights else config)
        network.scales.load_state_dict(self.scales.state_dict())
        return network.to(self.device)

    def load_image(self, photographs: Photographs) -> Tensor:
        """(B, 3, S, S) in [-1, 1] on the device; photographs are cropped and resized as in training.

        Raises:
            UserError: if one cannot be read, or an array or a tensor has another shape, type or range.
        """
        loaded = inputs.load(photographs, self.image_size, self.config.data.crop)
        return loaded.to(next(self.model.parameters()))  # its device and dtype

    def encode(self, photographs: Photographs) -> Tensor:
        """Z = E(image): (B, C, S/32, S/32).

        Raises:
            UserError: as `load_image`.
        """
        z: Tensor = self.model.encoder(self.load_image(photographs))
        return z

    def generate(self, z: Tensor) -> Tensor:
        """G(Z): (B, C, S/32, S/32) -> (B, 3, S, S) in [-1, 1]. `generate(encode(a))` is A'.

        Raises:
            UserError: for a latent of another shape.
        """
        if not self._is_latent(z):
            raise UserError(f"a latent of shape {tuple(z.shape)}: `encode` gives what `generate` takes")
        generated: Tensor = self.model.generator(z.to(self.device))
        return generated

    def fuse(self, a: Photographs, b: Photographs, lambda_: Lambda, mask: Mask | None = None) -> Tensor:
        """C = G(Lambda o E(A) + (1 - Lambda) o E(B)) (docs/method.md, eq. 1). All images fused of two are made here.

        Args:
            a, b: photographs, lists or batches of them; or what `encode` gives, (B, C, S/32, S/32).
            lambda_: 1 gives A', 0 gives B'; see `Lambda`.
            mask: fuse a region only: (S, S), or (B, S, S) for each pair its own, in [0, 1]: 1 where B enters, by
                `lambda_`; elsewhere Lambda is 1. See `regions.mask`.

        Returns:
            (B, 3, S, S) in [-1, 1]; of equal bits to A' where a mask is 0 everywhere.

        Raises:
            UserError: for a Lambda or mask of the wrong shape or out of range, or an image that cannot be read.
        """
        checked = self._checked_lambda(lambda_)
        z_a, z_b = self._latents(a), self._latents(b)
        lengths = len(z_a), len(z_b), len(checked) if checked.dim() in (2, 4) else 1
        length = inputs.common_length("a, b and lambda", lengths)
        inside = None if mask is None else self._checked_mask(mask, length)
        return self.model.fuse_unchecked(z_a, z_b, checked, inside)

    def _latents(self, given: Photographs) -> Tensor:
        """What `encode` gives, as it is or of photographs: (B, C, S/32, S/32)."""
        if isinstance(given, Tensor) and self._is_latent(given):
            return given.to(self.device)
        return self.encode(given)

    def _is_latent(self, given: Tensor) -> bool:
        """A latent has at least 16 channels, an image 3."""
        side = self.image_size // 32
        return given.dim() == 4 and given.shape[1:] == (sum(self.model.sizes), side, side)

    def _checked_lambda(self, lambda_: Lambda) -> Tensor:
        """As a float32 tensor of one of its four shapes, on the device."""
        values = inputs.shares("lambda", lambda_)
        if values.dim() == 0:
            values = values.expand(self.elements)
        side = self.image_size // 32
        index = 0 if values.dim() in (1, 3) else 1
        spatial = values.shape[index + 1 :]
        if values.dim() > 4 or values.shape[index] != self.elements or spatial not in ((), (side, side)):
            given = f"{len(values)} values" if values.dim() == 1 else f"shape {tuple(values.shape)}"
            raise UserError(
                f"lambda: {given}: this bundle takes 1 or {self.elements} numbers, or ({self.elements}, {side}, {side})"
            )
        return values.to(self.device)

    def _checked_mask(self, mask: Mask, count: int) -> Tensor:
        """For `count` pairs, as a float32 tensor (S, S) or (count, S, S) on the device."""
        size = self.image_size
        values = inputs.shares("mask", mask)
        if values.shape not in ((size, size), (count, size, size)):
            given = tuple(values.shape)
            raise UserError(f"mask: shape {given}: ({size}, {size}) or ({count}, {size}, {size}) is needed")
        return values.to(self.device)


def load_bundle(path: Path | str, device: torch.device | str = "cpu") -> Bundle:
    """`Bundle.load`, for commands; what `pipeline.load_bundle` gives in Python also draws, and knows the Hub."""
    return Bundle.load(path, device)


def _set_measured(bundle: Bundle, path: Path, info: dict[str, Any]) -> None:
    """What `export` has measured; bundles that it wrote earlier, or without shards at hand, lack it."""
    error = info.get("reconstruction")
    if error is not None and not (isinstance(error, float) and 0 < error < math.inf):
        raise UserError(f"{path}: reconstruction: {str(error)[:60]}: a number above 0 is needed; export it anew")
    data = bundle.config.data
    bundle.frame = landmarks.checked_frame(path, info.get("frame"), data.image_size, data.crop)
    bundle.reconstruction = error
