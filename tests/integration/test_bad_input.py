"""Whatever is put in: one line that names it, exit code 2, nothing half-written, nothing lost."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import (
    Trained,
    file_size_limit,
    finish,
    latentfuse,
    listing,
    make_photographs,
    picture,
    start,
    tiny_arguments,
)

from pipeline import load_bundle
from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.data.shards.reader import ShardReader

ORIENTATION = 0x0112


def sixteen_bits(path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (48, 40), np.uint16)
    Image.fromarray(values).save(path)


def cut(path: Path) -> None:
    picture(1).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "truncated JPEG": ("x.jpg", cut),
    "truncated PNG": ("x.png", cut),
    "text": ("x.jpg", lambda path: path.write_text("not a picture")),
    "empty": ("x.jpg", lambda path: path.write_bytes(b"")),
    "first two bytes": ("x.jpg", lambda path: path.write_bytes(b"\xff\xd8")),
    "1 pixel JPEG": ("x.jpg", lambda path: picture(1, (1, 1)).save(path)),
    "1 pixel PNG": ("x.png", lambda path: picture(1, (1, 1)).save(path)),
    "a strip of pixels": ("x.png", lambda path: picture(1, (300, 15)).save(path)),
    "16 bits": ("x.png", sixteen_bits),
}
ODD: dict[str, tuple[str, str]] = {
    "grey JPEG": ("x.jpg", "L"),
    "grey PNG": ("x.png", "L"),
    "grey with alpha": ("x.png", "LA"),
    "RGBA": ("x.png", "RGBA"),
    "palette": ("x.png", "P"),
    "black and white": ("x.png", "1"),
    "CMYK": ("x.jpg", "CMYK"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_picture_that_is_none(trained: Trained, tmp_path: Path, kind: str) -> None:
    name, make = BAD[kind]
    bad, (good, _) = tmp_path / name, trained.photographs
    make(bad)
    for pair in ((bad, good), (good, bad)):
        result = latentfuse("fuse", trained.bundle, *pair, "-o", tmp_path / "fused.png")
        result.assert_one_line(str(bad))
    assert listing(tmp_path) == {name}
    with pytest.raises(UserError, match=name):
        load_bundle(trained.bundle).fuse(bad, good, 0.5)

    source = make_photographs(tmp_path / "source", 8)
    bad.rename(source / name)
    out, options = tmp_path / "out", ("--split", "0.3", "--workers", "2", "--samples-per-shard", "4")
    latentfuse("shard", source, out, *options).assert_one_line(name, "--max-rejected 1")
    assert not list(out.rglob("manifest.json")) and not list(out.rglob(".*"))
    tolerant = latentfuse("shard", source, out, *options, "--max-rejected", "1")
    assert tolerant.code == 0 and f"rejected {name}" in tolerant.out
    assert len(ShardReader(out / "train")) + len(ShardReader(out / "test")) == 8


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_picture_is_read_as_rgb(trained: Trained, tmp_path: Path, kind: str) -> None:
    name, mode = ODD[kind]
    source = make_photographs(tmp_path / "source", 8)
    odd = picture(3, mode=mode)
    odd.save(source / name)
    expected = torch.from_numpy(np.array(odd.convert("RGB"))).permute(2, 0, 1).float()
    assert (images.read(source / name).float() - expected).abs().mean() < 6  # of 255: JPEG is lossy
    pair = (source / name, trained.photographs[1])
    result = latentfuse("fuse", trained.bundle, *pair, "--align", "no", "-o", tmp_path / "fused.png")
    assert result.code == 0 and not result.errors
    out = tmp_path / "out"
    assert latentfuse("shard", source, out, "--split", "0.3", "--workers", "1").code == 0
    reader = ShardReader(out / "test")
    read = {key: images.decode(data, key) for key, data in (reader.read(i) for i in range(len(reader)))}
    assert torch.equal(read["x"], images.read(source / name))


@pytest.mark.parametrize("form", ["jpg", "png"])
def test_a_turned_photograph_is_turned_back(trained: Trained, tmp_path: Path, form: str) -> None:
    upright = picture(4, (40, 60))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be shown turned by a quarter, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"turned.{form}", exif=exif)
    upright.save(tmp_path / "upright.png")
    bundle = load_bundle(trained.bundle)
    turned, expected = (bundle.load_image(tmp_path / name) for name in (f"turned.{form}", "upright.png"))
    assert (turned - expected).abs().mean() < 0.05
    with Image.open(tmp_path / f"turned.{form}") as opened:
        assert (bundle.load_image(opened) - expected).abs().mean() < 0.05


def test_sixteen_bits_from_pillow_are_refused_too(trained: Trained, tmp_path: Path) -> None:
    sixteen_bits(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as opened, pytest.raises(UserError, match="more than 8 bits"):
        load_bundle(trained.bundle).fuse(opened, opened, 0.5)


MISSING = {
    "photograph": ("fuse", "BUNDLE", "NONE", "NONE"),
    "bundle": ("fuse", "NONE", "PHOTO", "PHOTO"),
    "run": ("export", "NONE", "OUT"),
    "bundle to evaluate": ("evaluate", "NONE", "SHARDS", "--out", "OUT"),
    "shards": ("evaluate", "BUNDLE", "NONE", "--out", "OUT"),
    "source": ("shard", "NONE", "OUT"),
    "shards to verify": ("verify", "NONE"),
    "configuration": ("pretrain", "--config", "NONE"),
    "tars": ("shard", "NONE", "--index-only"),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_file(trained: Trained, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {
        "BUNDLE": trained.bundle,
        "PHOTO": trained.photographs[0],
        "SHARDS": trained.shards / "test",
        "OUT": tmp_path / "out",
        "NONE": tmp_path / "none",
    }
    latentfuse(*(names.get(each, each) for each in MISSING[what])).assert_one_line(str(tmp_path / "none"))
    assert not listing(tmp_path)


SETTINGS = {
    "foo=1": "foo: unknown key",
    "training.fusion_step=1": "did you mean fusion_steps?",
    "model.base_channel=1": "did you mean base_channels?",
    "data.image_size=48": "not a power of two",
    "training.device=tpu": "training.device",
    "training.mixed_precision=fp16": "fp16 needs a CUDA GPU",
    "model=3": "model",
    "model.base_channels.x=3": "model.base_channels",
    "seed=-1": "seed",
    "loss_weights.style=nan": "loss_weights.style",
    "data.crop=[": "not valid YAML",
    "no value": "expected key=value",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_does_not_hold(trained: Trained, tmp_path: Path, setting: str) -> None:
    for command in ("pretrain", "run"):
        result = latentfuse(command, *tiny_arguments(tmp_path / "run", trained.shards, setting))
        result.assert_one_line(SETTINGS[setting])
    assert listing(tmp_path) == {"tiny.yaml"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", ["pretrain", "train", "run"])
def test_no_gpu_where_one_was_asked_for(trained: Trained, tmp_path: Path, command: str) -> None:
    arguments = tiny_arguments(tmp_path / "run", trained.shards, "training.device=cuda")
    latentfuse(command, *arguments).assert_one_line("device: cuda", "no GPU", "latentfuse doctor")
    assert listing(tmp_path) == {"tiny.yaml"}


@pytest.mark.parametrize("content", ["- 1", "a: [", "1: 2", "model:\n  1: 2", "just words", "\x00"])
def test_a_configuration_that_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    latentfuse("train", "--config", path).assert_one_line(str(path))


def test_a_damaged_sample_stops_training_by_name(trained: Trained, tmp_path: Path) -> None:
    assert latentfuse("shard", trained.shards / "photographs", tmp_path / "s", "--split", "0.3").code == 0
    tar = tmp_path / "s" / "train" / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 1  # in the first picture, behind its header
    tar.write_bytes(bytes(content))
    for workers in (0, 1):
        arguments = tiny_arguments(tmp_path / "run", tmp_path / "s", f"data.workers={workers}")
        latentfuse("pretrain", *arguments).assert_one_line("shard-000000.tar: sample 000: damaged")
    assert not (tmp_path / "run" / "pretrain").exists()


@pytest.mark.parametrize("limit", [100_000, *(pytest.param(n, marks=pytest.mark.faults) for n in (150, 2_000, 20_000))])
def test_no_room_for_a_checkpoint(trained: Trained, tmp_path: Path, limit: int) -> None:
    arguments = tiny_arguments(tmp_path / "run", trained.shards)
    with file_size_limit(limit):
        result = latentfuse("pretrain", *arguments)
    result.assert_one_line(str(tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("step-*")) and not list((tmp_path / "run").rglob("*.tmp*"))
    assert latentfuse("pretrain", *arguments).code == 0, "with room it goes on"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(kib: int) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system takes root")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a writer that failed may hold its file yet


def writing_to(out: Path, trained: Trained, folder: Path) -> dict[str, tuple[object, ...]]:
    """Every command that writes, with `out` as its output."""
    return {
        "shard": ("shard", trained.shards / "photographs", out, "--split", "0.3", "--workers", "2"),
        "synth": ("synth", out, "--count", "80", "--workers", "2"),
        "export": ("export", trained.run, out),
        "evaluate": ("evaluate", trained.bundle, trained.shards / "test", "--out", out),
        "pretrain": ("pretrain", *tiny_arguments(folder / "run", trained.shards, f"run_dir={out}")),
        "fuse": ("fuse", trained.bundle, *trained.photographs, "--strip", "6", "-o", out),
    }


DISKS = (
    *(("shard", 8), ("synth", 8), ("fuse", 4), ("export", 60), ("evaluate", 8)),
    *(("pretrain", kib) for kib in (8, 120, 240)),  # events, weights, optimizers
)
"""The command, and how many KiB the disk has."""


@pytest.mark.parametrize(("command", "kib"), DISKS)
def test_a_full_disk(
    trained: Trained,
    tmp_path: Path,
    small_disk: Callable[[int], Path],
    command: str,
    kib: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    disk = small_disk(kib)
    out = disk / ("strip.png" if command == "fuse" else "out")
    (disk / "precious").write_bytes(bytes(3_000))
    latentfuse(*writing_to(out, trained, tmp_path)[command]).assert_one_line(str(disk))
    assert (disk / "precious").read_bytes() == bytes(3_000)
    left = {name for name in listing(disk) if Path(name).name.startswith(".")} - {"out/.lock"}
    assert not left and not list(disk.rglob("step-*")) and not (command == "export" and out.exists())
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_cannot_be_written(trained: Trained, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # nothing is read-only for root, but a file system
        folder = request.getfixturevalue("small_disk")(1000)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for command in writing_to(folder / "out", trained, tmp_path).values():
        latentfuse(*command).assert_one_line(str(folder))
    assert not listing(folder)
    (tmp_path / "locked").chmod(0o755)


def test_a_file_where_a_folder_should_be(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    commands = [*writing_to(file, trained, tmp_path).values(), *writing_to(file / "out", trained, tmp_path).values()]
    commands = [command for command in commands if command[-1] != file or command[0] != "fuse"]  # which replaces files
    for command in (*commands, ("fuse", trained.bundle, *trained.photographs, "-o", tmp_path)):
        latentfuse(*command).assert_one_line(str(tmp_path))
    assert file.read_text() == "precious" and listing(tmp_path) == {"file", "tiny.yaml"}


def test_a_mistake_as_a_process(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("not a picture")
    arguments = ("fuse", trained.bundle, tmp_path / "x.jpg", tmp_path / "x.jpg", "-o", tmp_path / "y.png")
    finish(start(*arguments)).assert_one_line(str(tmp_path / "x.jpg"))
    assert listing(tmp_path) == {"x.jpg"}
