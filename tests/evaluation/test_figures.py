"""`latentfuse features`."""

from pathlib import Path

from PIL import Image
from running import Trained, latentfuse, listing


def test_a_picture_of_every_layer(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "maps.png"
    options = ("--arch", "vgg16", "--weights", "random", "--out", out)
    result = latentfuse("features", trained.photographs[0], *options)
    assert result.code == 0 and result.out.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.width > 800 and picture.height > 600
        assert len(set(picture.convert("L").get_flattened_data())) > 100
    first = out.read_bytes()
    assert latentfuse("features", trained.photographs[1], *options).code == 0 and out.read_bytes() != first


def test_mistakes(tmp_path: Path, trained: Trained) -> None:
    out = ("--out", tmp_path / "maps.png", "--weights", "random")
    latentfuse("features", tmp_path / "no.jpg", *out).assert_one_line("no.jpg")
    latentfuse("features", trained.photographs[0], *out, "--arch", "vgg11").assert_one_line("arch", "vgg11")
    nowhere = ("--out", tmp_path / "maps.png", "--weights", tmp_path / "no.safetensors")
    latentfuse("features", trained.photographs[0], *nowhere).assert_one_line("no.safetensors")
    assert not listing(tmp_path)
