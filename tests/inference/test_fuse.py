"""Pictures of fused faces: where each image is in them, and what it is; and regions of them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import Trained, file_size_limit, latentfuse, listing
from torch import Tensor

import pipeline
from pipeline.common.errors import UserError
from pipeline.inference import detector, fuse, landmarks
from pipeline.inference.bundle import Bundle
from pipeline.inference.described import described_elements
from pipeline.inference.pictures import GAP, LEAST
from pipeline.models import regions
from pipeline.models.elements import element_labels

SIDE = 32
SCALE = LEAST // SIDE


@pytest.fixture(autouse=True)
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no faces are looked for: these photographs have none."""
    monkeypatch.setattr(detector, "installed", lambda: False)


@pytest.fixture(scope="module")
def bundle(trained: Trained) -> Bundle:
    return pipeline.load_bundle(trained.bundle)


@pytest.fixture(scope="module")
def pair(trained: Trained, bundle: Bundle) -> tuple[Tensor, Tensor]:
    a, b = trained.photographs
    return bundle.load_image(a), bundle.load_image(b)


def drawn(trained: Trained, out: Path, *arguments: object) -> np.ndarray:
    """The picture that the command makes of the two photographs."""
    result = latentfuse("fuse", trained.bundle, *trained.photographs, *arguments, "-o", out)
    assert (result.code, result.out.strip(), result.errors) == (0, str(out), "")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def rows_of(picture: np.ndarray) -> list[np.ndarray]:
    """The rows of faces, from the highest. Between them is white, or black text on white, without any colour."""
    coloured = np.ptp(picture.astype(int), axis=2).max(axis=1) > 8
    edges = np.flatnonzero(np.diff([False, *coloured, False]))
    return [picture[top:bottom] for top, bottom in zip(edges[::2], edges[1::2], strict=True) if bottom - top > SIDE]


def tile(row: np.ndarray, column: int, left: int = 0) -> np.ndarray:
    start = left + column * (LEAST + GAP)
    return row[:, start : start + LEAST]


def pixels(image: Tensor) -> np.ndarray:
    """(1, 3, S, S) in [-1, 1] -> (S, S, 3) uint8, independently of the code under test."""
    values = (image[0].double().numpy().transpose(1, 2, 0) + 1) * 127.5
    return np.rint(values).clip(0, 255).astype(np.uint8)


def assert_same(shown: np.ndarray, image: Tensor, scale: int = 1) -> None:
    size = scale * SIDE, scale * SIDE
    expected = np.asarray(Image.fromarray(pixels(image)).resize(size, Image.Resampling.BICUBIC)).astype(int)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= scale  # rounding is enlarged, too


def test_fusing_imports_no_training_and_no_charts() -> None:
    """They take longer to import than a picture takes to fuse."""
    slow = ("accelerate", "matplotlib", "pipeline.training", "torch._dynamo", "torchmetrics", "torchvision")
    code = f"import sys, pipeline.inference.fuse; print(sorted(set(sys.modules) & {set(slow)}))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_one_number_or_one_for_each() -> None:
    assert fuse.parse_lambda("0.5") == 0.5
    assert fuse.parse_lambda("1,0.5, 0,0,1e-1") == [1, 0.5, 0, 0, 0.1]
    for text in ("", "a", "1,", "1;0", "0.5,,1"):
        with pytest.raises(UserError, match="expected numbers"):
            fuse.parse_lambda(text)


@pytest.mark.parametrize(
    ("arguments", "lambda_"),
    [
        (("--lambda", "1,0.5,0,0,1"), [1, 0.5, 0, 0, 1]),
        (("--preset", "content-style"), [0, 0, 0, 1, 1]),
        ((), 0.5),
    ],
)
def test_a_single_picture_is_the_fused_image(
    trained: Trained, bundle: Bundle, pair: tuple[Tensor, Tensor], tmp_path: Path, arguments: tuple[str], lambda_: Any
) -> None:
    picture = drawn(trained, tmp_path / "new folder" / "c.png", *arguments, "--scale", "1")
    assert_same(picture, bundle.fuse(*pair, lambda_))
    assert_same(drawn(trained, tmp_path / "c.png", *arguments), bundle.fuse(*pair, lambda_), LEAST // SIDE)


def test_the_strip_is_the_papers_figure(
    trained: Trained, bundle: Bundle, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    picture = drawn(trained, tmp_path / "p.png", "--strip", 6)
    inputs, fused = rows_of(picture)
    assert picture.shape[1] == 6 * LEAST + 5 * GAP
    assert_same(tile(inputs, 0), pair[0], SCALE)
    assert_same(tile(inputs, 5), pair[1], SCALE)
    assert all((tile(inputs, column) == 255).all() for column in range(1, 5))
    for column, lambda_ in enumerate((1, 0.8, 0.6, 0.4, 0.2, 0)):
        assert_same(tile(fused, column), bundle.fuse(*pair, lambda_), SCALE)


def test_a_long_strip_goes_on_in_further_rows(
    trained: Trained, bundle: Bundle, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    inputs, *rows = rows_of(drawn(trained, tmp_path / "p.png", "--strip", "9", "--columns", "4"))
    assert len(rows) == 3 and inputs.shape[1] == 4 * LEAST + 3 * GAP
    assert_same(tile(inputs, 3), pair[1], SCALE)
    for row, column, lambda_ in ((0, 0, 1), (0, 3, 0.625), (1, 0, 0.5), (2, 0, 0)):
        assert_same(tile(rows[row], column), bundle.fuse(*pair, lambda_), SCALE)


def test_each_row_of_the_grid_moves_one_element(
    trained: Trained, bundle: Bundle, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    inputs, *rows = rows_of(drawn(trained, tmp_path / "p.png", "--grid", "--columns", "3"))
    left = inputs.shape[1] - 4 * LEAST - 3 * GAP
    assert left > 60, "the elements are named there"
    assert_same(tile(inputs, 0, left), pair[0], SCALE)
    assert_same(tile(inputs, 2, left), pair[1], SCALE)
    back, ends = bundle.fuse(*pair, 1), []
    for element, row in enumerate(rows):
        for column, moved in enumerate((1, 0.5, 0)):
            lambdas = [1.0] * 5
            lambdas[element] = moved
            assert_same(tile(row, column, left), bundle.fuse(*pair, lambdas), SCALE)
        ends.append(bundle.fuse(*pair, lambdas))
    differences = [(end - back).abs().mean(dim=1, keepdim=True).expand(1, 3, SIDE, SIDE) for end in ends]
    largest = max(float(each.max()) for each in differences)
    for row, difference in zip(rows, differences, strict=True):
        assert_same(tile(row, 3, left), difference / largest * 2 - 1, SCALE)


def test_rows_of_the_grid_are_named_as_the_bundle_says(
    trained: Trained, bundle: Bundle, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    small = ("--grid", "--scale", "1", "--columns", "2")
    before = drawn(trained, tmp_path / "p.png", *small)
    folder = Path(shutil.copytree(trained.bundle, tmp_path / "bundle"))
    info = json.loads((folder / "config.json").read_text())
    assert [each["name"] for each in info["elements"]] == [f"element {n}" for n in range(1, 6)]
    info["elements"][1]["name"] = "hair"
    (folder / "config.json").write_text(json.dumps(info))
    assert latentfuse("fuse", folder, *trained.photographs, *small, "-o", tmp_path / "q.png").code == 0
    with Image.open(tmp_path / "q.png") as after:
        words = element_labels(described_elements(folder, bundle.config.model))
        assert words == ["element 1", "2 hair", "element 3", "element 4", "element 5"]
        assert after.height == len(before) and not np.array_equal(np.asarray(after), before)
    del info["elements"]  # as bundles of before
    (folder / "config.json").write_text(json.dumps(info))
    assert latentfuse("fuse", folder, *trained.photographs, *small, "-o", tmp_path / "q.png").code == 0
    with Image.open(tmp_path / "q.png") as old:
        assert np.array_equal(np.asarray(old), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lambda=2",), "2 is outside"),
        (("--lambda=1,0",), "2 values"),
        (("--lambda=half",), "expected numbers"),
        (("--strip", "1"), "at least 2"),
        (("--strip", "-3"), "at least 2"),
        (("--preset", "swap"), "known are: content-style"),
        (("--grid", "--strip", "3"), "give one of them"),
        (("--lambda", "1", "--preset", "content-style"), "give one of them"),
        (("--animate", "c.webp", "--strip", "3"), "give one of them"),
        (("--columns", "3"), "--columns 3: is for --strip and --grid"),
        (("--columns", "3", "--animate", "c.gif"), "--columns 3: is for --strip and --grid"),
        (("--paste", "--scale", "2"), "--scale 2: --paste keeps the size"),
        (("--strip", "150", "--scale", "16"), "(--scale)"),
        (("--device", "tpu"), "--device tpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_drawn_is_refused(
    trained: Trained, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = latentfuse("fuse", trained.bundle, *trained.photographs, *arguments, "-o", tmp_path / "c.png")
    result.assert_one_line(message)
    assert not listing(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_where_one_was_asked_for(trained: Trained, tmp_path: Path) -> None:
    arguments = ("--device", "cuda", "-o", tmp_path / "c.png")
    latentfuse("fuse", trained.bundle, *trained.photographs, *arguments).assert_one_line("no GPU")
    assert not listing(tmp_path)


def test_a_preset_needs_the_layerwise_reading(bundle: Bundle) -> None:
    fusion = bundle.config.fusion.model_copy(update={"reading": "shared"})
    other = Bundle(bundle.config.model_copy(update={"fusion": fusion}), bundle.model)
    with pytest.raises(UserError, match="layerwise"):
        fuse.preset("content-style", other)


@pytest.mark.parametrize("limit", [40, 400])
def test_no_room_leaves_the_picture_that_was_there(trained: Trained, tmp_path: Path, limit: int) -> None:
    out = tmp_path / "c.png"
    out.write_bytes(b"old")
    with file_size_limit(limit):
        result = latentfuse("fuse", trained.bundle, *trained.photographs, "-o", out)
    result.assert_one_line(str(out), "cannot be written")
    assert out.read_bytes() == b"old" and listing(tmp_path) == {"c.png"}


def test_ctrl_c_while_writing_leaves_nothing(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Path, _: object) -> None:
        with self.open("wb") as stream:
            stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    result = latentfuse("fuse", trained.bundle, *trained.photographs, "-o", tmp_path / "c.png")
    result.assert_one_line("Ctrl-C", code=130)
    assert not listing(tmp_path)


def difference(one: Tensor, other: Tensor) -> float:
    """In grey levels of 256."""
    return float((one - other).abs().max()) * 127.5


@pytest.fixture
def photographs(trained: Trained, tmp_path: Path) -> tuple[Path, Path]:
    """Copies, beside which landmarks may be put."""
    a, b = (tmp_path / "in" / name for name in ("a.jpg", "b.jpg"))
    a.parent.mkdir()
    for copy, original in zip((a, b), trained.photographs, strict=True):
        copy.write_bytes(original.read_bytes())
    return a, b


LANDMARKS = {"lefteye": [12, 30], "righteye": [26, 30], "nose": [19, 36], "leftmouth": [13, 42], "rightmouth": [25, 42]}


def test_a_named_region_is_fused_where_the_landmarks_are(
    trained: Trained, bundle: Bundle, pair: tuple[Tensor, Tensor], photographs: tuple[Path, Path], tmp_path: Path
) -> None:
    out, beside, elsewhere = tmp_path / "c.png", photographs[0].with_suffix(".json"), tmp_path / "marks.json"
    elsewhere.write_text(json.dumps({"landmarks": LANDMARKS}))

    def mouth(*arguments: object, notice: str = "") -> np.ndarray:
        result = latentfuse(
            "fuse", trained.bundle, *photographs, "--region", "mouth", *arguments, "--scale", "1", "-o", out
        )
        assert (result.code, result.errors) == (0, notice), result
        with Image.open(out) as picture:
            return np.asarray(picture)

    found = landmarks.fitted(LANDMARKS, 40, 48, SIDE)
    usual = landmarks.fitted(regions.celeba(40, 48), 40, 48, SIDE)
    here, there = (bundle.fuse(*pair, 0, regions.mask("mouth", points, SIDE)) for points in (found, usual))
    assert difference(here, there) > 3, "the places tell the pictures apart"
    where = "--region mouth is where CelebA's alignment has it; --landmarks FILE places it"
    notice = f"fuse: {photographs[0]} has no landmarks: {where}\n"
    assert_same(mouth(notice=notice), there)
    assert_same(mouth("--landmarks", elsewhere), here)
    beside.write_text(elsewhere.read_text())
    assert_same(mouth(), here)
    lambdas = [0, 0.3, 1, 0, 0.5]
    part = bundle.fuse(*pair, lambdas, regions.mask("mouth", found, SIDE))
    assert_same(mouth("--lambda", ",".join(map(str, lambdas))), part)
    swap = bundle.fuse(*pair, [0, 0, 0, 1, 1], regions.mask("mouth", found, SIDE))
    assert_same(mouth("--preset", "content-style"), swap)
    beside.write_text("{")
    result = latentfuse("fuse", trained.bundle, *photographs, "--region", "mouth", "-o", out)
    result.assert_one_line(str(beside), "not JSON")


def test_a_feather_leaves_the_rest_as_it_was(
    trained: Trained, bundle: Bundle, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    back = bundle.generate(bundle.encode(pair[0]))
    left = regions.mask("left", {}, SIDE)
    z_a, z_b = bundle.encode(pair[0]), bundle.encode(pair[1])
    fused = fuse.fuse_inside(bundle, z_a, z_b, 0.0, fuse.Region(left, 3))
    assert_same(drawn(trained, tmp_path / "c.png", "--region", "left", "--feather", "3"), fused, SCALE)
    assert torch.equal(fused[..., 19:], back[..., 19:])
    assert torch.equal(fused[..., :13], bundle.fuse(*pair, 0.0, left)[..., :13])
    sharp = fuse.fuse_inside(bundle, z_a, z_b, 0.0, fuse.Region(left, 0))
    assert torch.equal(sharp[..., 16:], back[..., 16:]) and difference(sharp[..., 14:16], back[..., 14:16]) > 3


@pytest.mark.parametrize(("size", "mode"), [((32, 32), "L"), ((100, 100), "RGB"), ((40, 48), "L"), ((64, 64), "1")])
def test_a_mask_is_white_where_b_enters(
    trained: Trained, bundle: Bundle, pair: tuple[Tensor, Tensor], tmp_path: Path, size: tuple[int, int], mode: str
) -> None:
    width, height = size
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, : width // 2] = 255
    Image.fromarray(pixels).convert(mode).save(tmp_path / "mask.png")
    mask = fuse.masked_region(bundle, tmp_path / "mask.png", trained.photographs[0]).mask
    assert (mask[:, :15] == 1).all() and (mask[:, 17:] == 0).all()  # resizing may blur the edge
    assert mask[:, 15].min() > 0.8 and mask[:, 16].max() < 0.2
    masked = drawn(trained, tmp_path / "c.png", "--mask", tmp_path / "mask.png", "--scale", "1")
    assert_same(masked, bundle.fuse(*pair, 0, mask))


def test_a_mask_of_the_size_of_a_is_cropped_as_a_is(trained: Trained, bundle: Bundle, tmp_path: Path) -> None:
    pixels = np.zeros((48, 40), np.uint8)
    pixels[:4] = 255  # the crop leaves it out
    pixels[10:24] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    mask = fuse.masked_region(bundle, tmp_path / "mask.png", trained.photographs[0]).mask
    assert mask[:4].max() == 0 and mask[6:15].min() == 1 and mask[18:].max() == 0  # rows 10 to 23 of 4 to 43


def test_the_strip_of_a_region(trained: Trained, bundle: Bundle, pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    inputs, fused = rows_of(drawn(trained, tmp_path / "p.png", "--region", "right", "--strip", "3"))
    assert_same(tile(inputs, 0), pair[0], SCALE)
    assert_same(tile(inputs, 2), pair[1], SCALE)
    for column, lambda_ in enumerate((1, 0.5, 0)):
        assert_same(tile(fused, column), bundle.fuse(*pair, lambda_, regions.mask("right", {}, SIDE)), SCALE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--region", "ears"), "known are: eyes, nose, mouth, hair, left, right"),
        (("--region", "eyes", "--mask", "m.png"), "give one of them"),
        (("--region", "eyes", "--grid"), "--grid shows whole pictures"),
        (("--mask", "m.png", "--grid"), "--grid shows whole pictures"),
        (("--landmarks", "l.json"), "none is given"),
        (("--feather", "2"), "none is given"),
        (("--region", "eyes", "--landmarks", "l.json"), "l.json: No such file"),
        (("--mask", "m.png"), "m.png: No such file"),
        (("--mask", "black.png"), "black.png: has no white in it"),
        (("--mask", "wide.png"), "wide.png: 40 x 30 pixels; a mask is a square, or 40 x 48"),
        (("--mask", "text.png"), "text.png: not a readable image"),
        (("--region", "hair", "--landmarks", "high.json"), "--region hair: lies outside of the picture"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_a_region_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (32, 32)).save("black.png")
    Image.new("L", (40, 30), 255).save("wide.png")
    Path("text.png").write_text("no picture")
    high = {name: [2 * x - 20, y - 28] for name, (x, y) in LANDMARKS.items()}
    Path("high.json").write_text(json.dumps({"landmarks": high}))
    before = listing(tmp_path)
    result = latentfuse("fuse", trained.bundle, *trained.photographs, *arguments, "-o", tmp_path / "c.png")
    result.assert_one_line(message)
    assert listing(tmp_path) == before


def test_a_mask_that_does_not_fit_is_refused(bundle: Bundle, pair: tuple[Tensor, Tensor]) -> None:
    for mask, message in (
        (torch.ones(SIDE, SIDE + 1), r"mask: shape \(32, 33\)"),
        (torch.ones(2, SIDE, SIDE), r"\(1, 32, 32\) is needed"),
        (torch.full((SIDE, SIDE), 1.5), r"is outside \[0, 1\]"),
        (torch.full((SIDE, SIDE), torch.nan), r"is outside \[0, 1\]"),
    ):
        with pytest.raises(UserError, match=message):
            bundle.fuse(*pair, 0.5, mask)


def test_each_pair_of_a_batch_has_its_own_region(bundle: Bundle, pair: tuple[Tensor, Tensor]) -> None:
    a, b = torch.cat(pair), torch.cat(pair).flip(0)
    masks = torch.stack([regions.mask(name, {}, SIDE) for name in ("left", "right")])
    back, fused = bundle.generate(bundle.encode(a)), bundle.fuse(a, b, 0.0, masks)
    inside = ((fused - back).abs().mean(1) * masks).sum() / masks.sum()
    outside = ((fused - back).abs().mean(1) * (1 - masks)).sum() / (1 - masks).sum()
    assert outside < 0.2 * inside
    assert torch.equal(bundle.fuse(a, b, 0.0, 0 * masks), back)
