"""The numbers of `evaluate`, computed again by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import Trained, file_size_limit, latentfuse, listing, make_photographs
from safetensors.torch import load_file, save_file

import pipeline
from pipeline.data.writing import write_shards

FILES = {"metrics.json", "metrics.md", "reconstruction.png", "strips.png", "effects.png"}


def test_reconstruction_is_that_of_every_test_image(trained: Trained, tmp_path: Path) -> None:
    arguments = ("evaluate", trained.bundle, trained.shards / "test", "--out", tmp_path / "e", "--json")
    result = latentfuse(*arguments)
    assert result.code == 0 and listing(tmp_path / "e") == FILES
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert json.loads(result.out) == metrics

    bundle = pipeline.load_bundle(trained.bundle)
    held_out = sorted((trained.shards / "photographs").glob("*.jpg"))[-4:]
    images = torch.cat([bundle.load_image(path) for path in held_out])
    shown = bundle.generate(bundle.encode(images)).double().numpy()
    difference = shown - images.double().numpy()
    squares = np.square(difference).mean(axis=(1, 2, 3))
    reconstruction = metrics["reconstruction"]
    assert reconstruction["images"] == 4
    assert reconstruction["L1"] == pytest.approx(np.abs(difference).mean(), rel=1e-4)
    assert reconstruction["MSE"] == pytest.approx(squares.mean(), rel=1e-4)
    assert reconstruction["PSNR"] == pytest.approx((10 * np.log10(4 / squares)).mean(), rel=1e-4)
    assert -1 <= reconstruction["SSIM"] <= 1
    assert metrics["exactness"] == {"pairs": 4, "lambda_1": 0.0, "lambda_0": 0.0}
    effects = metrics["effects"]
    assert np.shape(effects["matrix"]) == (5, 5) and effects["perceptual"] == "vgg16, random"
    shares = np.square(effects["matrix"]) / np.square(effects["matrix"]).sum(axis=0)
    assert effects["own_shares"] == pytest.approx(np.diagonal(shares), abs=1e-3)
    assert effects["weakest"] == pytest.approx(np.max(effects["matrix"], axis=1).min(), abs=1e-4)

    first = (tmp_path / "e" / "metrics.json").read_bytes()
    assert latentfuse(*arguments).code == 0
    assert (tmp_path / "e" / "metrics.json").read_bytes() == first


def test_the_table_is_printed_and_kept(trained: Trained, tmp_path: Path) -> None:
    result = latentfuse("evaluate", trained.bundle, trained.shards / "test", "--out", tmp_path, "--pairs", "2")
    table = (tmp_path / "metrics.md").read_text()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert result.code == 0 and table in result.out and metrics["effects"]["pairs"] == 2
    assert f"| reconstruction L1 | {metrics['reconstruction']['L1']:.4f} |" in table
    assert "equal bits" in table and table.count("| element ") == 5
    with Image.open(tmp_path / "reconstruction.png") as picture:
        assert picture.size == (4 * 34 - 2, 2 * 34 - 2)


def test_images_that_are_all_alike_are_no_accident(trained: Trained, tmp_path: Path) -> None:
    photographs = make_photographs(tmp_path / "photographs", 1)
    for number in range(1, 6):
        shutil.copy(photographs / "000.jpg", photographs / f"{number:03d}.jpg")
    write_shards(photographs, tmp_path / "shards", split="0.5", workers=1)
    result = latentfuse("evaluate", trained.bundle, tmp_path / "shards" / "test", "--out", tmp_path / "e")
    assert result.code == 0 or not (tmp_path / "e").exists()
    assert "Traceback" not in result.errors


def test_weights_that_are_not_finite_are_refused(trained: Trained, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained.bundle, tmp_path / "bundle"))
    weights = load_file(bundle / "model.safetensors")
    weights["model.generator.body.4.0.weight"].fill_(float("nan"))
    save_file(weights, bundle / "model.safetensors")
    result = latentfuse("evaluate", bundle, trained.shards / "test", "--out", tmp_path / "e")
    result.assert_one_line("not a finite number")
    assert not (tmp_path / "e").exists()


def test_what_is_missing_is_named(trained: Trained, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "e")
    latentfuse("evaluate", trained.bundle, trained.shards, *out).assert_one_line("name that folder")
    latentfuse("evaluate", trained.bundle, tmp_path / "no", *out).assert_one_line("no such folder")
    nowhere = ("--perceptual-weights", tmp_path / "no.safetensors")
    latentfuse("evaluate", trained.bundle, trained.shards / "test", *out, *nowhere).assert_one_line("no.safetensors")
    assert not listing(tmp_path)


def test_no_room_leaves_every_file_whole(trained: Trained, tmp_path: Path) -> None:
    arguments = ("evaluate", trained.bundle, trained.shards / "test", "--out", tmp_path)
    assert latentfuse(*arguments).code == 0
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    with file_size_limit(300):
        latentfuse(*arguments).assert_one_line(str(tmp_path), "cannot be written")
    assert {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)} == before
