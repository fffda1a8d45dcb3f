"""A checkpoint as a bundle: safetensors, config.json, model card."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.common.version import VERSION
from pipeline.inference import model_card, weights
from pipeline.inference.bundle import FORMAT
from pipeline.models.elements import element_names
from pipeline.models.perceptual import FeatureScales
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.measured import measured


def export_bundle(found: Checkpoint, path: Path, max_shard_size: str = "5GB") -> None:
    """Write the weights for use of a checkpoint as a bundle: the average where there is one.

    Written to a temporary folder beside `path` and renamed. A bundle that was there is replaced, and nothing else:
    whatever it does not consist of stays where it is, and so does the bundle.

    Raises:
        UserError: if `path` holds anything else than a bundle, or cannot be written, or the weights are not whole.
    """
    if not re.fullmatch(r"0*[1-9]\d*[KMGT]B", max_shard_size):
        raise UserError(f"--max-shard-size {max_shard_size}: expected a size as 500MB or 5GB")
    if path.is_symlink():
        raise UserError(f"{path}: is a link; name the folder it points to, or another one")
    path = Path(os.path.realpath(path))
    _check_replaceable(path, path)
    trained = provenance(found)
    scales = found.module("perceptual") or FeatureScales().state_dict()  # pre-training has none
    tensors = {f"model.{key}": value for key, value in found.module(trained["weights"]).items()}
    tensors |= {f"scales.{key}": value for key, value in scales.items()}
    config = found.config
    wanted = weights.promised(config.model)
    if unlike := weights.difference(wanted, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        raise UserError(f"{found.path}: its weights do not fit its configuration: {trained['weights']} {unlike}")
    info = {"format": FORMAT, "latentfuse": VERSION, "config": config.as_dict(), "trained": trained}
    info["elements"] = [element._asdict() for element in element_names(config.model)]
    said = {"format": "pt", "image_size": str(config.data.image_size)}
    info |= measured(config, found.module(trained["weights"]), trained["data_hash"])
    try:
        with files.replacing_folder(path, lambda old: _check_replaceable(old, path)) as temporary:
            save_torch_state_dict(tensors, temporary, max_shard_size=max_shard_size, metadata=said)
            files.write_json(temporary / weights.CONFIG, info | {"sha256": weights.hashes(temporary)})
            model_card.write(temporary, config, trained, config.run_dir / "evaluation")
            for written in temporary.iterdir():
                shutil.copymode(temporary / weights.CONFIG, written)  # safetensors lets nobody else read its files
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the bundle could not be written: {error}") from None
    for left in files.leftovers(path.parent, re.escape(path.name)):  # of an export that was killed
        if left.is_dir() and not weights.not_of_a_bundle(left):
            shutil.rmtree(left, ignore_errors=True)


def _check_replaceable(folder: Path, named: Path) -> None:
    """Only a bundle may be replaced, or an empty folder; `named` is what the user calls it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not weights.is_bundle(folder):
        raise UserError(f"{named}: exists and is not a bundle; remove it or name another folder")
    if others := weights.not_of_a_bundle(folder):
        what = weights.listed(others)
        raise UserError(f"{named}: holds {what}, which is not a bundle's; move it or name another folder")


def provenance(found: Checkpoint) -> dict[str, Any]:
    """What a bundle of this checkpoint says of where its weights come from."""
    known = {key: found.state[key] for key in ("stage", "step", "images_seen", "data_hash")}
    return known | {"weights": "average" if found.module("average") else "autoencoder", "checkpoint": found.digest}
