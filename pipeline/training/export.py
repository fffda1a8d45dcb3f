"""A checkpoint as a bundle: safetensors, config.json, model card."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError

import pipeline
from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.config import load as configuration
from pipeline.config.schema import Config
from pipeline.inference.bundle import FORMAT
from pipeline.models.perceptual import FeatureScales
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.measured import measured


def export_bundle(found: Checkpoint, path: Path, max_shard_size: str = "5GB") -> None:
    """Write the weights for use of a checkpoint as a bundle: the average where there is one.

    Written to a temporary folder beside `path` and renamed; a bundle that was there is replaced.

    Raises:
        UserError: if `path` holds something else than a bundle, or cannot be written.
    """
    path = path.absolute()
    if not re.fullmatch(r"0*[1-9]\d*[KMGT]B", max_shard_size):
        raise UserError(f"--max-shard-size {max_shard_size}: expected a size as 500MB or 5GB")
    if path.exists() and not _is_bundle(path):
        raise UserError(f"{path}: exists and is not a bundle; remove it or name another folder")
    config = configuration.validate_stored(found.state["config"], str(found.path))
    trained = provenance(found)
    scales = found.module("perceptual") or FeatureScales().state_dict()  # pre-training has none
    weights = {f"model.{key}": value for key, value in found.module(trained["weights"]).items()}
    weights |= {f"scales.{key}": value for key, value in scales.items()}
    info = {"format": FORMAT, "latentfuse": pipeline.__version__, "config": config.as_dict(), "trained": trained}
    info |= measured(config, found.module(trained["weights"]), trained["data_hash"])
    try:
        with files.replacing_folder(path) as temporary:
            save_torch_state_dict(weights, temporary, max_shard_size=max_shard_size, metadata={"format": "pt"})
            files.write_json(temporary / "config.json", info)
            files.write_text(temporary / "README.md", _model_card(config, trained))
            for written in temporary.iterdir():
                shutil.copymode(temporary / "config.json", written)  # safetensors lets nobody else read its files
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the bundle could not be written: {error}") from None


def _is_bundle(path: Path) -> bool:
    try:
        return "latentfuse" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def provenance(found: Checkpoint) -> dict[str, Any]:
    """What a bundle of this checkpoint says of where its weights come from."""
    known = {key: found.state[key] for key in ("stage", "step", "images_seen", "data_hash")}
    return known | {"weights": "average" if found.module("average") else "autoencoder", "checkpoint": found.digest}


def _model_card(config: Config, trained: dict[str, Any]) -> str:
    size, perceptual = config.data.image_size, config.perceptual
    labelled = " (random weights: a demonstration, not a result)" if perceptual.weights == "random" else ""
    return f"""---
license: apache-2.0
library_name: latentfuse
tags: [image-fusion, faces, autoencoder]
---
# Element-wise latent fusion of faces

Fuses two photographs by mixing {config.model.elements} elements of their latents, each by its own lambda:
`Z_C = Lambda o Z_A + (1 - Lambda) o Z_B`, then `C = G(Z_C)`. Images are {size} x {size}.

```python
import pipeline
bundle = pipeline.load_bundle("path/of/this/folder")
fused = bundle.fuse("a.jpg", "b.jpg", [1, 0.5, 0, 0, 1])  # (1, 3, {size}, {size}) in [-1, 1]
```

On the command line: `latentfuse fuse path/of/this/folder a.jpg b.jpg --strip 6`.

| | |
|---|---|
| stage, step | {trained["stage"]}, {trained["step"]} |
| images seen in this stage | {trained["images_seen"]:,} |
| shards (content hash) | `{trained["data_hash"][:16]}` |
| weights | {"exponential moving average" if trained["weights"] == "average" else "as trained"} |
| perceptual network | {perceptual.arch}, weights `{Path(perceptual.weights).name}`{labelled} |
| feature scale | {perceptual.feature_scale} |
| base channels, elements, reading | {config.model.base_channels}, {config.model.elements}, {config.fusion.reading} |

Trained on aligned, centred faces: others fuse badly. The faces it draws are of nobody, yet resemble those they
are fused from: ask the people in the photographs.
"""
