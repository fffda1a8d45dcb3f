"""One full evaluation of the tiny run, Shapley values and paths included."""

import json
import shutil
from pathlib import Path

import pytest
from running import Trained, latentfuse


@pytest.fixture(scope="session")
def thorough(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny bundle whose evaluations leave nothing out."""
    bundle = Path(shutil.copytree(trained.bundle, tmp_path_factory.mktemp("thorough") / "bundle"))
    info = json.loads((bundle / "config.json").read_text())
    info["config"]["evaluation"]["corner_pairs"] = 1
    (bundle / "config.json").write_text(json.dumps(info))
    return bundle


@pytest.fixture(scope="session")
def evaluated(trained: Trained, thorough: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its evaluation."""
    out = tmp_path_factory.mktemp("evaluated") / "evaluation"
    result = latentfuse("evaluate", thorough, trained.shards / "test", "--out", out)
    assert result.code == 0, result
    return out
