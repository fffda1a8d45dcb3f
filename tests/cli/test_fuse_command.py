"""`latentfuse fuse`: what it writes and says of it, moving pictures, and lists of pairs."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from running import Trained, latentfuse, listing

import pipeline
from pipeline.data import images
from pipeline.inference import detector
from pipeline.inference.bundle import Bundle
from pipeline.inference.fuse import FRAMES
from pipeline.inference.pictures import GAP, LEAST


@pytest.fixture(autouse=True)
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no faces are looked for: these photographs have none."""
    monkeypatch.setattr(detector, "installed", lambda: False)


@pytest.fixture(scope="module")
def loaded(trained: Trained) -> Bundle:
    return pipeline.load_bundle(trained.bundle)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn."""
    drawn: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def note(self: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *more: Any, **options: Any) -> None:
        drawn.extend([text] if text else [])
        draw(self, place, text, *more, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return drawn


def texts_of(path: Path) -> dict[str, str]:
    """What a PNG says of itself."""
    with Image.open(path) as picture:
        return {str(name): str(text) for name, text in picture.info.items()}


def assert_shows(path: Path, fused: torch.Tensor) -> None:
    """`path` is the fused image (1, 3, S, S), at its own size."""
    assert (images.normalise(images.read(path)) - fused[0]).abs().max() < 0.01


def test_a_png_says_how_it_was_made(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "it's ä.png"
    photographs = [str(path) for path in trained.photographs]
    command = ("fuse", trained.bundle, *photographs, "--lambda", "1,0.5,0,0,1", "-o", out)
    assert latentfuse(*command).code == 0
    said = texts_of(out)
    assert said.pop("Software") == f"latentfuse {pipeline.__version__}"
    quoted = str(out).replace("'", "'\"'\"'")
    assert said == {
        "lambda": "1,0.5,0,0,1",
        "bundle": hashlib.sha256((trained.bundle / "config.json").read_bytes()).hexdigest(),
        "command": f"latentfuse fuse {trained.bundle} {' '.join(photographs)} --lambda 1,0.5,0,0,1 -o '{quoted}'",
    }
    for option, lambda_ in (("--strip=3", "from 1 to 0 in 3 images"), ("--preset=content-style", "0,0,0,1,1")):
        assert latentfuse("fuse", trained.bundle, *photographs, option, "-o", out).code == 0
        assert texts_of(out)["lambda"] == lambda_


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--strip", "3"), ["A", "B", "A' (lambda 1)", "lambda 0.5", "B' (lambda 0)"]),
        (("--strip", "2", "--region", "left"), ["A", "B", "A' (lambda 1)", "lambda 0"]),
        (
            ("--grid", "--columns", "2"),
            ["A", "B", "A' (lambda 1)", "lambda 0", "difference from A'", *(f"element {n}" for n in range(1, 6))],
        ),
    ],
)
def test_pictures_explain_themselves(
    trained: Trained, tmp_path: Path, texts: list[str], arguments: tuple[str], expected: list[str]
) -> None:
    assert latentfuse("fuse", trained.bundle, *trained.photographs, *arguments, "-o", tmp_path / "p.png").code == 0
    assert [text.split("\n")[0] for text in texts] == expected
    assert all(text.split("\n")[1].startswith("white: ") for text in texts if "difference" in text)


def test_the_ending_says_the_format_and_is_checked_first(trained: Trained, loaded: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "c.jpg"
    assert latentfuse("fuse", trained.bundle, *trained.photographs, "--scale", "2", "-o", out).out == f"{out}\n"
    with Image.open(out) as picture:
        assert picture.format == "JPEG" and picture.size == (64, 64)
    nowhere = ("fuse", tmp_path / "no bundle", *trained.photographs)
    latentfuse(*nowhere, "-o", tmp_path / "c.bmp").assert_one_line("c.bmp: ends with none of .png, .jpg, .jpeg")
    latentfuse(*nowhere, "--animate", tmp_path / "c.png").assert_one_line("c.png: ends with none of .webp, .gif")
    features = latentfuse("features", tmp_path / "no.jpg", "-o", tmp_path / "f.tiff")
    features.assert_one_line("f.tiff: ends with none of .png")
    assert listing(tmp_path) == {"c.jpg"}


def test_a_moving_picture(trained: Trained, loaded: Bundle, tmp_path: Path, texts: list[str]) -> None:
    out = tmp_path / "new" / "m.webp"
    result = latentfuse("fuse", trained.bundle, *trained.photographs, "--region", "right", "--animate", out)
    assert (result.code, result.out) == (0, f"{out}\n")
    assert texts[:3] == ["A", "lambda 1.00", "B"] and texts[-3:] == ["A", "lambda 0.00", "B"]
    a, b = (loaded.load_image(path) for path in trained.photographs)
    with Image.open(out) as picture:
        assert picture.format == "WEBP" and picture.n_frames == 2 * FRAMES - 2  # type: ignore[attr-defined]
        picture.seek(FRAMES - 1)
        frame = np.asarray(picture.convert("RGB")).astype(float)
    mask = torch.zeros(32, 32)
    mask[:, 16:] = 1
    known = torch.cat([a, loaded.fuse(a, b, 0.0, mask), b, loaded.fuse(a, b, 0.0), loaded.fuse(a, b, 1.0)]).numpy()
    for column in range(3):
        left = column * (LEAST + GAP)
        shown = frame[-LEAST:, left : left + LEAST].reshape(32, 6, 32, 6, 3).mean((1, 3)).transpose(2, 0, 1)
        apart = np.abs(shown / 127.5 - 1 - known).mean((1, 2, 3))
        assert apart.argmin() == column and apart.min() < 0.1, "a WebP loses some of such noise"


def list_of_pairs(folder: Path, *lines: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_many_pairs(trained: Trained, loaded: Bundle, tmp_path: Path) -> None:
    a, b = trained.photographs
    pairs, out = list_of_pairs(tmp_path, "a,b", f"{a},{b}", f"{b},{a}"), tmp_path / "new" / "out"
    many = ("fuse", trained.bundle, "--pairs", pairs, "--out-dir", out)
    result = latentfuse(*many, "--lambda", "0.3", "--scale", "1")
    assert (result.code, result.out, result.errors) == (0, f"{out}: 2 pictures\n", "")
    assert listing(out) == {"0001-000-001.png", "0002-001-000.png"}
    assert_shows(out / "0001-000-001.png", loaded.fuse(a, b, 0.3))
    assert_shows(out / "0002-001-000.png", loaded.fuse(b, a, 0.3))
    assert texts_of(out / "0001-000-001.png")["lambda"] == "0.3"
    assert latentfuse(*many, "--strip", "2").code == 0
    with Image.open(out / "0002-001-000.png") as picture:
        assert picture.width == 2 * LEAST + GAP


def test_each_pair_has_its_own_lambda(trained: Trained, loaded: Bundle, tmp_path: Path) -> None:
    a, b = trained.photographs
    lines = ("a,b,lambda", f'{a},{b},"1,0.5,0,0,1"', f"{a},{b},", f"{b},{a},0")
    many = ("fuse", trained.bundle, "--pairs", list_of_pairs(tmp_path, *lines), "--out-dir", tmp_path / "out")
    assert latentfuse(*many, "--scale", "1", "--lambda", "0.7").code == 0
    paths = sorted((tmp_path / "out").iterdir())
    expected = (loaded.fuse(a, b, [1, 0.5, 0, 0, 1]), loaded.fuse(a, b, 0.7), loaded.fuse(b, a, 0.0))
    for path, fused in zip(paths, expected, strict=True):
        assert_shows(path, fused)
    assert [texts_of(path)["lambda"] for path in paths] == ["1,0.5,0,0,1", "0.7", "0"]
    latentfuse(*many, "--strip", "3").assert_one_line("pairs.csv:2: has a lambda, of which --strip shows all")


def test_a_pair_that_cannot_be_fused_does_not_stop_the_others(trained: Trained, tmp_path: Path) -> None:
    a, b = trained.photographs
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    pairs = list_of_pairs(tmp_path, "a,b", *[f"bad.jpg,{a}"] * 12, f"{a},{b}")
    out = tmp_path / "out"
    result = latentfuse("fuse", trained.bundle, "--pairs", pairs, "--out-dir", out)
    assert result.code == 2 and listing(out) == {"0013-000-001.png"}
    told = result.errors.splitlines()
    assert len(told) == 11 and told[0].startswith(f"fuse: {pairs}:2: {tmp_path / 'bad.jpg'}: not a readable image")
    assert told[-1] == f"latentfuse: {pairs}: 12 of 13 pairs could not be fused; the others are in {out}"


def test_what_there_is_to_say_of_many_pairs_is_bounded(trained: Trained, tmp_path: Path) -> None:
    a, b = trained.photographs
    pairs = list_of_pairs(tmp_path, "a,b", *[f"{a},{b}"] * 12)
    many = ("fuse", trained.bundle, "--pairs", pairs, "--out-dir", tmp_path / "out", "--scale", "1")
    result = latentfuse(*many, "--region", "eyes")
    told = result.errors.splitlines()
    assert result.code == 0 and len(told) == 11 and told[-1] == "fuse: and 2 more lines of this kind"
    assert told[9].startswith(f"fuse: {pairs}:11: {a} has no landmarks")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pairs", "p.csv"), "--pairs FILE and --out-dir FOLDER belong together"),
        (("--out-dir", "out", "A", "B"), "--pairs FILE and --out-dir FOLDER belong together"),
        (("A", "--pairs", "p.csv", "--out-dir", "out"), "fuse: A A: is for one pair"),
        (("--pairs", "p.csv", "--out-dir", "out", "-o", "c.png"), "fuse: --out c.png: is for one pair"),
        (("--pairs", "p.csv", "--out-dir", "out", "--animate", "m.gif"), "--animate m.gif: is for one pair"),
        (
            ("--pairs", "p.csv", "--out-dir", "out", "--region", "eyes", "--landmarks", "l.json"),
            "--landmarks l.json: is for one pair",
        ),
        (("A", "B", "--animate", "m.gif", "-o", "c.png"), "--animate m.gif is what is written; leave out --out c.png"),
        (("--pairs", "p.csv", "--out-dir", "file"), "--out-dir file: is no folder"),
        (("--pairs", "none.csv", "--out-dir", "out"), "none.csv: No such file"),
        (("--pairs", "p.csv", "--out-dir", "out", "--preset", "swap"), "known are: content-style"),
        (("--pairs", "p.csv", "--out-dir", "out", "--lambda", "half"), "--lambda half: expected numbers"),
        (("A", "B", "--scale", "17"), "Invalid value for '--scale'"),
        (("A", "B", "--columns", "1", "--grid"), "Invalid value for '--columns'"),
        ((), "Missing argument: photographs A and B, or --pairs FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_does_not_go_together_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for name, path in zip(("A", "B"), trained.photographs, strict=True):
        shutil.copy(path, name)
    list_of_pairs(tmp_path, "a,b", "A,B").rename("p.csv")
    before = listing(tmp_path)
    latentfuse("fuse", trained.bundle, *arguments).assert_one_line(message)
    assert listing(tmp_path) == before
