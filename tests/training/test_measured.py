"""What `export` measures of the shards: the frame of a bundle, and how well it reconstructs held-out faces."""

import json
from pathlib import Path

import pytest
import torch
from running import TEST, Trained, latentfuse

import pipeline
from pipeline.data.loading.loader import FaceImages
from pipeline.data.shards.writing import write_shards
from pipeline.data.synth.faces import write_faces
from pipeline.inference import align, landmarks
from pipeline.models import regions
from pipeline.training import checkpoint
from pipeline.training.measured import QUANTILE, measured


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of painted faces, which have landmarks."""
    folder = tmp_path_factory.mktemp("painted")
    write_faces(folder / "faces", 12, seed=1)
    write_shards(folder / "faces", folder / "shards", split="0.25", workers=1)
    return folder / "shards"


def test_the_frame_is_the_mean_of_the_training_landmarks(trained: Trained, painted: Path) -> None:
    found = checkpoint.find(trained.run)
    config = pipeline.load_bundle(trained.bundle).config
    data = config.data.model_copy(update={"shards": painted, "crop": 150})
    train = FaceImages(painted / "train", data)
    told = measured(config.model_copy(update={"data": data}), found.module("average"), train.content_hash)
    known = [landmarks.of_sample(train.reader.metadata(index), 32, 150) for index in range(len(train))]
    for name in regions.POINTS:
        mean = [sum(points[name][axis] for points in known) / len(known) for axis in (0, 1)]
        assert told["frame"][name] == pytest.approx(mean, abs=0.01)
    assert told["frame"]["lefteye"][0] < told["frame"]["righteye"][0]


def test_the_reconstruction_is_a_quantile_of_the_held_out_faces(trained: Trained) -> None:
    bundle = pipeline.load_bundle(trained.bundle)
    test = FaceImages(bundle.config.shards_dir / "test", bundle.config.data)
    assert len(test) == TEST
    lost = align.lost(bundle, test.load(range(TEST)))
    assert bundle.reconstruction == pytest.approx(float(lost.quantile(QUANTILE)), rel=1e-4)


def test_images_without_landmarks_give_no_frame(trained: Trained) -> None:
    info = json.loads((trained.bundle / "config.json").read_text())
    assert "frame" not in info and info["reconstruction"] > 0
    assert pipeline.load_bundle(trained.bundle).frame == landmarks.usual(178, 218, 32)


def test_other_shards_or_none_are_not_measured(trained: Trained, painted: Path, tmp_path: Path) -> None:
    found = checkpoint.find(trained.run)
    config = pipeline.load_bundle(trained.bundle).config
    for shards in (painted, tmp_path / "gone"):
        data = config.data.model_copy(update={"shards": shards})
        other = config.model_copy(update={"data": data})
        assert measured(other, found.module("average"), found.state["data_hash"]) == {}


def test_lost_is_the_share_of_the_contrast(trained: Trained) -> None:
    bundle = pipeline.load_bundle(trained.bundle)
    image = torch.rand(2, 3, 32, 32, dtype=torch.float32) - 0.5
    back = bundle.generate(bundle.encode(image))
    for each, (a, b) in zip(align.lost(bundle, image), zip(image, back, strict=True), strict=True):
        spread = (a - a.mean(dim=(1, 2), keepdim=True)).abs().mean()
        assert float(each) == pytest.approx(float((a - b).abs().mean() / spread), rel=1e-4)


def test_export_says_it(trained: Trained, tmp_path: Path) -> None:
    assert latentfuse("export", trained.run, tmp_path / "bundle").code == 0
    assert pipeline.load_bundle(tmp_path / "bundle").reconstruction == pytest.approx(
        pipeline.load_bundle(trained.bundle).reconstruction
    )
