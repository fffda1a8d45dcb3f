"""The numbers of `evaluate`, computed again by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import Trained, file_size_limit, latentfuse, listing, make_photographs, scalars

import pipeline
from pipeline.data.shards.writing import write_shards
from pipeline.inference.pictures import GAP, LEAST

FIGURES = {"reconstruction", "strips", "half_way", "elements", "effects"}
FILES = {"metrics.json", "per_image.json", "metrics.md", *(f"{name}.png" for name in FIGURES)}


def test_the_same_evaluation_gives_the_same_bytes(
    evaluated: Path, trained: Trained, thorough: Path, tmp_path: Path
) -> None:
    """Also with another state of torch's generator, and with the run's TensorBoard."""
    torch.manual_seed(int.from_bytes(b"else"))
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    arguments = ("evaluate", thorough, trained.shards / "test", "--out", tmp_path / "e", "--json", "--run", run)
    result = latentfuse(*arguments)
    assert result.code == 0
    assert listing(evaluated) == listing(tmp_path / "e") == FILES | {"path.png", "shapley.png"}
    for name in ("metrics.json", "per_image.json", "metrics.md"):
        assert (tmp_path / "e" / name).read_bytes() == (evaluated / name).read_bytes()
    assert json.loads(result.out) == json.loads((evaluated / "metrics.json").read_text())
    shown = scalars(run, "evaluate")
    assert shown["effects/own_share"] == {4: pytest.approx(json.loads(result.out)["effects"]["own_share"])}


def test_reconstruction_is_that_of_every_test_image(trained: Trained, evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    bundle = pipeline.load_bundle(trained.bundle)
    held_out = sorted((trained.shards / "photographs").glob("*.jpg"))[-4:]
    images = torch.cat([bundle.load_image(path) for path in held_out])
    shown = bundle.generate(bundle.encode(images)).double().numpy()
    difference = shown - images.double().numpy()
    squares = np.square(difference).mean(axis=(1, 2, 3))
    reconstruction = metrics["reconstruction"]
    assert reconstruction["count"] == 4
    assert reconstruction["L1"] == pytest.approx(np.abs(difference).mean(), rel=1e-4)
    assert reconstruction["MSE"] == pytest.approx(squares.mean(), rel=1e-4)
    assert reconstruction["PSNR"] == pytest.approx((10 * np.log10(4 / squares)).mean(), rel=1e-4)
    assert -1 <= reconstruction["SSIM"] <= 1
    assert metrics["exactness"] == {"count": 4, "lambda_1": 0.0, "lambda_0": 0.0}
    effects = metrics["effects"]
    assert np.shape(effects["matrix"]) == (5, 5) and metrics["perceptual"] == "vgg16, random"
    shares = np.square(effects["matrix"]) / np.square(effects["matrix"]).sum(axis=0)
    assert effects["own_shares"] == pytest.approx(np.diagonal(shares), abs=1e-3)
    assert effects["weakest"] == pytest.approx(np.max(effects["matrix"], axis=1).min(), abs=1e-4)

    low, high = reconstruction["interval"]["MSE"]
    assert squares.min() < low < reconstruction["MSE"] < high < squares.max()


def test_every_section_is_there_or_says_why_not(evaluated: Path) -> None:
    """Four photographs without landmarks."""
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert (
        metrics["reconstruction"]["LPIPS_style"] > 0
        and "not the published LPIPS" in metrics["reconstruction"]["LPIPS_net"]
    )
    assert "0 pairs" in metrics["pose"]["left_out"] and "not painted" in metrics["factors"]["left_out"]
    realism = metrics["realism"]
    assert realism["train_count"] == 10 and realism["FID_fused"] is None and "not Inception" in realism["net"]
    told = metrics["detectability"]
    assert told["count"] == 4 and 0 <= told["fused"] <= 1 and "morph" not in told and "element_5" in told
    assert metrics["half_way.mean_reconstructions"]["ghost"] == pytest.approx(1, abs=1e-5)
    assert metrics["half_way"]["detour"] >= 1 and metrics["half_way"]["count"] == 4
    assert len(metrics["path"]["spearman_elements"]) == len(metrics["path_pixels"]["spearman_elements"]) == 5
    assert np.sum(metrics["shapley"]["matrix"], axis=0) == pytest.approx(np.ones(5), abs=1e-4)
    assert len(metrics["regions"]["leaks"]) == 6 and metrics["effects"]["dead_elements"] == []
    assert metrics["train_shards"] and metrics["seed"] == 0


def test_without_training_images_realism_is_left_out(trained: Trained, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(trained.shards / "test", tmp_path / "faces"))
    result = latentfuse("evaluate", trained.bundle, alone, "--out", tmp_path / "e", "--json")
    metrics = json.loads(result.out)
    assert "--train" in metrics["realism"]["left_out"] and metrics["train_shards"] is None
    assert "detectability" not in metrics
    assert "path" not in metrics  # nor are 0 pairs measured
    result = latentfuse("evaluate", trained.bundle, alone, "--out", tmp_path / "e", "--train", trained.shards)
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["realism"]["train_count"] == 10


def test_the_table_is_printed_and_kept_and_no_room_leaves_every_file_whole(trained: Trained, tmp_path: Path) -> None:
    arguments = ("evaluate", trained.bundle, trained.shards, "--out", tmp_path, "--pairs", "2")
    result = latentfuse(*arguments)
    table = (tmp_path / "metrics.md").read_text()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert result.code == 0 and table in result.out and metrics["effects"]["count"] == 2
    assert "reconstruction 4" in table, "the folder of both splits stands for its test split"
    assert "FID is left out: 4 images for 512 features; more images than features are needed." in table
    assert f"| reconstruction L1 | {metrics['reconstruction']['L1']:.4f} |" in table
    assert "equal bits" in table and table.count("| element ") == 10
    with Image.open(tmp_path / "reconstruction.png") as picture:
        assert picture.height == 2 * LEAST + GAP and picture.width > 4 * (LEAST + GAP), "named on the left"
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    with file_size_limit(300):
        latentfuse(*arguments).assert_one_line(str(tmp_path), "cannot be written")
    assert {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)} == before


def test_images_that_are_all_alike_are_no_accident(trained: Trained, tmp_path: Path) -> None:
    photographs = make_photographs(tmp_path / "photographs", 1)
    for number in range(1, 6):
        shutil.copy(photographs / "000.jpg", photographs / f"{number:03d}.jpg")
    write_shards(photographs, tmp_path / "shards", split="0.5", workers=1)
    result = latentfuse("evaluate", trained.bundle, tmp_path / "shards" / "test", "--out", tmp_path / "e")
    assert result.code == 0 or not (tmp_path / "e").exists()
    assert "Traceback" not in result.errors


def test_what_is_missing_is_named(trained: Trained, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "e")
    latentfuse("evaluate", trained.bundle, trained.shards / "photographs", *out).assert_one_line("no shards")
    latentfuse("evaluate", trained.bundle, tmp_path / "no", *out).assert_one_line("no such folder")
    nothing = ("--run", tmp_path / "no")
    latentfuse("evaluate", trained.bundle, trained.shards / "test", *out, *nothing).assert_one_line("--run", "no run")
    nowhere = ("--perceptual-weights", tmp_path / "no.safetensors")
    latentfuse("evaluate", trained.bundle, trained.shards / "test", *out, *nowhere).assert_one_line("no.safetensors")
    (tmp_path / "file").touch()
    occupied = ("--out", tmp_path / "file")
    latentfuse("evaluate", trained.bundle, trained.shards / "test", *occupied).assert_one_line("cannot be written")
    assert listing(tmp_path) == {"file"}
