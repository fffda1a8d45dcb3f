"""The weights of a bundle: what its files promise is compared with its configuration before any memory is taken.

BUNDLE/model.safetensors              or, above a size, several:
BUNDLE/model-00001-of-00002.safetensors, ... and model.safetensors.index.json, which says what is in which
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.config.schema import ModelConfig
from pipeline.models.autoencoder import FusionAutoencoder
from pipeline.models.perceptual import FeatureScales

CONFIG, CARD, STRIP = "config.json", "README.md", "strip.png"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PART = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors")
MOST_UNPROMISED_SIDE = 1024
"""Pixels: the largest images of a bundle whose weights do not say theirs, as those of the first version."""

Shapes = dict[str, tuple[int, ...]]


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a bundle, whole or damaged."""
    try:
        info = files.read_json(path / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(info, dict) and "latentfuse" in info


def not_of_a_bundle(path: Path) -> list[str]:
    """Names of what is in a folder and no file that a bundle consists of; a link is none."""
    return sorted(
        each.name
        for each in path.iterdir()
        if each.is_symlink()
        or not each.is_file()
        or not (each.name in (CONFIG, CARD, STRIP, INDEX) or PART.fullmatch(each.name))
    )


def new_modules(config: ModelConfig) -> nn.ModuleDict:
    """What a bundle's weights are for: `model` and `scales`."""
    return nn.ModuleDict({"model": FusionAutoencoder(config), "scales": FeatureScales()})


def promised(config: ModelConfig) -> Shapes:
    """The tensors that a bundle of this configuration holds, without taking their memory."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in new_modules(config).state_dict().items()}


def difference(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first tensor that is missing, unknown or of another shape, and how many more are; None: they agree."""
    found = [f"lacks {name}" for name in wanted if name not in given]
    found += [f"has an unknown {name}" for name in given if name not in wanted]
    for name, shape in wanted.items():
        if name in given and tuple(given[name]) != tuple(shape):
            found.append(f"{name} is {_text(given[name])}, not {_text(shape)}")
    return listed(found) if found else None


def listed(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity."""
    return [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file with weights, and of their index, by name."""
    names = sorted(each.name for each in folder.iterdir() if each.name == INDEX or PART.fullmatch(each.name))
    return {name: files.sha256(folder / name) for name in names}


def load(folder: Path, config: ModelConfig, image_size: int, sums: Any) -> nn.ModuleDict:
    """The modules of a bundle, with its weights.

    Args:
        image_size: side of its images in pixels, by its configuration.
        sums: SHA-256 by file, as `hashes` gives them; None: an older bundle has none.

    Raises:
        UserError: naming the file that is missing or damaged, or the tensor that does not fit the configuration.
    """
    try:
        parts, side = _parts(folder)
        given: Shapes = {}
        for part in parts:
            shapes, of_part = _header(folder / part)
            given |= shapes
            side = of_part or side
        _check_side(folder, image_size, side)
        if unlike := difference(promised(config), given):
            raise UserError(f"{folder}: {CONFIG} does not match the weights: {WHOLE} {unlike}")
        if sums is not None:
            _check_sums(folder, sums)
        weights = {name: tensor for part in parts for name, tensor in load_file(folder / part).items()}
        modules = new_modules(config)
        modules.load_state_dict(weights)
        bad = not_finite(modules.state_dict())
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{folder}: its weights cannot be read: {where}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: its weights are damaged or cut short: {reason}") from None
    if bad:
        raise UserError(f"{folder}: its weights are not finite numbers: {listed(bad)}")
    return modules


def _parts(folder: Path) -> tuple[list[str], str | None]:
    """The files with weights, and the side of the images if the index says it."""
    if not (folder / INDEX).exists():
        return [WHOLE], None
    index = files.read_json(folder / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{INDEX} is none")
    wrong = [name for name in names.values() if not PART.fullmatch(name)]
    if wrong:
        raise ValueError(f"{INDEX} names {json.dumps(wrong[0][:100])}, which is no file of a bundle's weights")
    metadata = index.get("metadata")
    side = metadata.get("image_size") if isinstance(metadata, dict) else None
    return sorted(set(names.values())), None if side is None else str(side)


def _header(path: Path) -> tuple[Shapes, str | None]:
    """What a file of weights says it holds; safetensors has checked that it is as long as that."""
    files.open_file(path).close()  # no pipe, no folder
    with safe_open(path, "pt") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        return shapes, (opened.metadata() or {}).get("image_size")


def _check_side(folder: Path, image_size: int, side: str | None) -> None:
    """The weights fit images of every size: what they were trained with is written beside them."""
    if side is None and image_size > MOST_UNPROMISED_SIDE:
        raise UserError(
            f"{folder / CONFIG}: data.image_size: {image_size}, but the weights do not say so, and without that "
            f"{MOST_UNPROMISED_SIDE} is the most; export the bundle again"
        )
    if side is not None and side != str(image_size):
        raise UserError(f"{folder / CONFIG}: data.image_size: {image_size}, but the weights are for {side}")


def _check_sums(folder: Path, sums: Any) -> None:
    found = hashes(folder)
    if not isinstance(sums, dict) or sums.keys() != found.keys():
        raise UserError(f"{folder / CONFIG}: its sha256 is not a list of the files of weights that are here")
    for name, sum_ in found.items():
        if sums[name] != sum_:
            raise UserError(f"{folder / name}: damaged: its SHA-256 is not the one in {CONFIG}")
