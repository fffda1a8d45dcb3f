"""What hostile inputs stand beside: a bundle, photographs and shards, made without training."""

import json
from pathlib import Path

import pytest
from making import jpegs
from running import make_shards, tiny_config
from safetensors.torch import save_file
from trying import photograph

from pipeline.inference import weights
from pipeline.inference.bundle import FORMAT


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose weights are random."""
    folder = tmp_path_factory.mktemp("untrained")
    config = tiny_config(folder / "run", folder)
    bundle = folder / "bundle"
    bundle.mkdir()
    tensors = weights.new_modules(config.model).state_dict()
    save_file(tensors, bundle / "model.safetensors", metadata={"format": "pt", "image_size": "32"})
    trained = {"stage": "train", "step": 1, "images_seen": 4, "data_hash": "", "weights": "average", "checkpoint": ""}
    info = {"format": FORMAT, "latentfuse": "", "config": config.as_dict(), "trained": trained}
    (bundle / "config.json").write_text(json.dumps(info | {"sha256": weights.hashes(bundle)}))
    return bundle


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph that is one."""
    path = tmp_path_factory.mktemp("good") / "good.jpg"
    path.write_bytes(photograph())
    return path


@pytest.fixture(scope="session")
def whole_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `train` and `test`, to be copied."""
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of photographs, to be spoilt."""
    return jpegs(tmp_path / "source", 4)
