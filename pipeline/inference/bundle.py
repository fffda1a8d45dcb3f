"""Bundles: what a user of a trained model loads. Safetensors, JSON and a model card; no pickle.

BUNDLE/model.safetensors   encoder and generator, feature scales (several files and an index above a size)
BUNDLE/config.json         the training configuration and what the weights come from
BUNDLE/README.md           the model card
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_torch_model
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.common.errors import UserError
from pipeline.config import load as configuration
from pipeline.config.schema import Config
from pipeline.data import images
from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.models.perceptual import FeatureScales, PerceptualNetwork

FORMAT = 1
Photograph = Tensor | Image.Image | Path | str
"""(3, S, S) or (B, 3, S, S) in [-1, 1]; or a photograph of any size, or where one is."""


class Bundle:
    """A trained model, ready for use: in eval mode, without gradients."""

    def __init__(self, path: Path, config: Config, trained: dict[str, Any], device: torch.device | str) -> None:
        self.path, self.config, self.trained = path, config, trained
        self.model = FusionAutoencoder(config.model)
        self.scales = FeatureScales()
        _load_weights(path, nn.ModuleDict({"model": self.model, "scales": self.scales}))
        self.model.to(device).eval().requires_grad_(False)

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

    def load_image(self, photograph: Photograph) -> Tensor:
        """(B, 3, S, S) in [-1, 1] on the device; photographs are cropped and resized as in training.

        Raises:
            UserError: if it cannot be read, or a tensor has another shape.
        """
        if isinstance(photograph, Tensor):
            batch = photograph if photograph.dim() == 4 else photograph[None]
            if batch.shape[1:] != (3, self.image_size, self.image_size):
                shape, size = tuple(photograph.shape), self.image_size
                raise UserError(
                    f"an image tensor of shape {shape}: this bundle takes (B, 3, {size}, {size}) in [-1, 1]"
                )
            return batch.to(self.device, torch.float32)
        if isinstance(photograph, Image.Image):
            pixels = images.from_pillow(photograph)
        else:
            pixels = images.read(Path(photograph))
        fitted = images.fit(pixels, self.image_size, self.config.data.crop)
        return images.normalise(fitted)[None].to(self.device)

    def encode(self, photograph: Photograph) -> Tensor:
        """Z = E(image): (B, C, S/32, S/32)."""
        z: Tensor = self.model.encoder(self.load_image(photograph))
        return z

    def generate(self, z: Tensor) -> Tensor:
        """G(Z): (B, C, S/32, S/32) -> (B, 3, S, S) in [-1, 1]."""
        generated: Tensor = self.model.generator(z.to(self.device))
        return generated

    def fuse(
        self, a: Photograph, b: Photograph, lambda_: float | Sequence[float] | Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """C = G(Lambda o E(A) + (1 - Lambda) o E(B)), METHOD (1).

        Args:
            a, b: photographs, or batches of equal size.
            lambda_: one number for all elements; N numbers; or a tensor (N,), (B, N), (N, h, w) or (B, N, h, w).
                All in [0, 1]; 1 gives A', 0 gives B'.
            mask: fuse a region only, as `fuse_region` does.

        Returns:
            (B, 3, S, S) in [-1, 1].

        Raises:
            UserError: for a Lambda or mask of the wrong shape or out of range, or an image that cannot be read.
        """
        if mask is not None:
            return self.fuse_region(a, b, mask, lambda_)[1]
        return self.model.fuse_latents(self.encode(a), self.encode(b), self.check_lambda(lambda_))

    def fuse_region(
        self, a: Photograph, b: Photograph, mask: Tensor, lambda_: float | Sequence[float] | Tensor = 0.0
    ) -> tuple[Tensor, Tensor]:
        """A', and C that differs from it inside a region: how far C leaks out of it is seen beside A'.

        Args:
            a, b, lambda_: as in `fuse`; `lambda_` holds inside the region, outside of it 1.
            mask: (S, S), or (B, S, S) for each pair its own, in [0, 1]: 1 where B enters. See `regions.mask`.

        Returns:
            A' and C, (B, 3, S, S) in [-1, 1]; of equal bits where a mask is 0 everywhere.

        Raises:
            UserError: as `fuse`.
        """
        z_a, z_b = self.encode(a), self.encode(b)
        return self.model.fuse_region(z_a, z_b, self.check_lambda(lambda_), self.check_mask(mask, len(z_a)))

    def check_lambda(self, lambda_: float | Sequence[float] | Tensor) -> Tensor:
        """Lambda as a float32 tensor of one of its four shapes, on the device.

        Raises:
            UserError: if it does not fit this bundle.
        """
        values = torch.as_tensor(lambda_, dtype=torch.float32, device=self.device)
        if values.dim() == 0:
            values = values.expand(self.elements)
        side = self.image_size // 32
        place = 0 if values.dim() in (1, 3) else 1
        spatial = values.shape[place + 1 :]
        if values.dim() > 4 or values.shape[place] != self.elements or spatial not in ((), (side, side)):
            given = f"{len(values)} values" if values.dim() == 1 else f"shape {tuple(values.shape)}"
            raise UserError(
                f"lambda: {given}: this bundle takes 1 or {self.elements} numbers, or ({self.elements}, {side}, {side})"
            )
        outside = values[~((values >= 0) & (values <= 1))]
        if len(outside):
            raise UserError(f"lambda: {outside[0].item():g} is outside [0, 1]")
        return values

    def check_mask(self, mask: Tensor, count: int) -> Tensor:
        """A mask for `count` pairs as a float32 tensor (S, S) or (count, S, S), on the device.

        Raises:
            UserError: if it does not fit.
        """
        size = self.image_size
        values = mask.to(self.device, torch.float32)
        if values.shape not in ((size, size), (count, size, size)):
            raise UserError(f"mask: shape {tuple(mask.shape)}: ({size}, {size}) or ({count}, {size}, {size}) is needed")
        if not ((values >= 0) & (values <= 1)).all():
            raise UserError("mask: its values must be in [0, 1]")
        return values


def load_bundle(path: Path | str, device: torch.device | str = "cpu") -> Bundle:
    """Load a bundle that `latentfuse export` wrote.

    Raises:
        UserError: naming the file that is missing or damaged, or the weight that does not fit the configuration.
    """
    path = Path(path)
    try:
        info = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise UserError(f"{path / 'config.json'}: bundle format {info['format']}; this version reads {FORMAT}")
        values, trained = info["config"], info["trained"]
    except OSError as error:
        raise UserError(f"{path}: not a bundle: {path / 'config.json'}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path / 'config.json'}: not the configuration of a bundle") from None
    return Bundle(path, configuration.validate(values, str(path / "config.json")), trained, device)


def _load_weights(path: Path, modules: nn.Module) -> None:
    try:
        result: Any = load_torch_model(modules, path, strict=False, map_location="cpu")
    except (OSError, ValueError) as error:
        if isinstance(error.__cause__, SafetensorError):  # the message on top of it advises to allow pickle
            raise UserError(f"{path}: its weights are damaged or cut short: {error.__cause__}") from None
        raise UserError(f"{path}: its weights cannot be read: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:  # a shape that does not fit
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: config.json does not match the weights: {reason}") from None
    for what, keys in (("lacks", result.missing_keys), ("has an unknown", result.unexpected_keys)):
        if keys:
            raise UserError(f"{path}: config.json does not match the weights: model.safetensors {what} {keys[0]}")
