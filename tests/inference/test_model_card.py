"""Model cards: what they say of a bundle, and what they leave as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import Trained

import pipeline
from pipeline.common.errors import UserError
from pipeline.config.schema import Config
from pipeline.inference import model_card, weights

MEASURED: dict[str, Any] = {
    "reconstruction": {"PSNR": 25.24314, "SSIM": 0.8, "interval": {"PSNR": [25.1, 25.38]}},
    "detectability": {"fused": 0.5, "interval": {"fused": [None, 0.6]}},
    "realism": {"left_out": "too few images"},
}


@pytest.fixture(scope="module")
def config(trained: Trained) -> Config:
    return pipeline.load_bundle(trained.bundle).config


@pytest.fixture(scope="module")
def origin(trained: Trained) -> dict[str, Any]:
    return pipeline.load_bundle(trained.bundle).trained


@pytest.fixture
def evaluation(tmp_path: Path, origin: dict[str, Any]) -> Path:
    """An evaluation of the bundle's weights."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(MEASURED | {"bundle": origin}))
    (folder / "strips.png").write_bytes(b"a picture")
    return folder


def painted(config: Config) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"source": "synth"})})


def front_matter(card: str) -> dict[str, Any]:
    start, found, _ = card.removeprefix("---\n").partition("\n---\n")
    assert found and card.startswith("---\n")
    parsed: dict[str, Any] = yaml.safe_load(start)
    return parsed


def test_says_what_the_hub_reads_and_where_it_comes_from(trained: Trained, origin: dict[str, Any]) -> None:
    card = (trained.bundle / "README.md").read_text()
    said = front_matter(card)
    assert said["library_name"] == "latentfuse" and "faces" in said["tags"]
    assert said["license"] == "other", "photographs of somebody decide it"
    for part in (
        "None yet",
        "## Intended use",
        "## Limits",
        "random weights: a demonstration",
        "element 5",
        "train, 4",
    ):
        assert part in card, part
    assert origin["data_hash"][:16] in card


def test_shows_the_evaluation_of_its_weights(
    config: Config, origin: dict[str, Any], evaluation: Path, tmp_path: Path
) -> None:
    model_card.write(tmp_path, config, origin, evaluation)
    card = (tmp_path / "README.md").read_text()
    assert "| reconstruction, PSNR in dB | 25.2 | 25.1 to 25.4 | higher |" in card
    assert "AUC | 0.5 |  | 0.5: as much a face |" in card and "FID" not in card and "None yet" not in card
    assert not (tmp_path / "strip.png").exists() and "strip.png" not in card, "people are not copied into a bundle"
    model_card.write(tmp_path, painted(config), origin, evaluation)
    card = (tmp_path / "README.md").read_text()
    assert "(strip.png)" in card and (tmp_path / "strip.png").read_bytes() == b"a picture"
    assert front_matter(card)["license"] == "apache-2.0"
    (tmp_path / "evaluation" / "strips.png").unlink()
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(MEASURED | {"bundle": origin | {"step": 5}}))
    model_card.write(tmp_path, config, origin, evaluation)
    assert "None yet" in (tmp_path / "README.md").read_text(), "of other weights"


def test_a_bundle_with_a_strip_is_one(bundle: Path) -> None:
    (bundle / "strip.png").touch()
    assert weights.not_of_a_bundle(bundle) == []


def test_an_update_leaves_what_people_have_changed(
    config: Config, origin: dict[str, Any], evaluation: Path, tmp_path: Path
) -> None:
    model_card.write(tmp_path, config, origin, tmp_path / "none")
    card = tmp_path / "README.md"
    own = card.read_text().replace("license: other", "license: cc-by-4.0").replace("## Limits", "## What it cannot do")
    card.write_text(own)
    model_card.update(tmp_path, config, origin, evaluation)
    start, _, rest = card.read_text().partition("\n## Results\n")
    assert own.startswith(start) and own.endswith(rest[rest.index("\n## Intended use") :]) and "| 25.2 |" in rest
    before = card.stat().st_mtime_ns
    model_card.update(tmp_path, config, origin, evaluation)
    assert card.stat().st_mtime_ns == before, "nothing new, nothing written"


@pytest.mark.parametrize(
    "own", [b"# My faces\n", "# Gesichter für alle\n\n## Results\n\nnone".encode(), b"\xff\xfe", None]
)
def test_a_card_of_ones_own_stays(
    config: Config, origin: dict[str, Any], evaluation: Path, tmp_path: Path, own: bytes | None
) -> None:
    card = tmp_path / "README.md"
    if own is not None:
        card.write_bytes(own)
    model_card.update(tmp_path, config, origin, evaluation)
    assert (card.read_bytes() if card.exists() else None) == own


def test_a_card_that_cannot_be_read_is_one_line(
    config: Config, origin: dict[str, Any], evaluation: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").mkdir()
    with pytest.raises(UserError, match=r"README\.md"):
        model_card.update(tmp_path, config, origin, evaluation)
