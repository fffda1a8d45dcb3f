"""Photographs as tensors: what is read, what is refused, and exact scaling."""

import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, resize

from pipeline.common.errors import UserError
from pipeline.data import images


def picture(width: int = 40, height: int = 48, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("PNG", mode) for mode in ("RGB", "RGBA", "L", "P")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    ],
)
def test_every_kind_becomes_rgb(form: str, mode: str) -> None:
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" and mode == "RGB" else {}
    data = encoded(picture(mode=mode), form, **options)
    image = images.decode(data, "x")
    assert image.shape == (3, 48, 40) and image.dtype == torch.uint8
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1).astype(int)
    tolerance = 4 if form == "JPEG" else 0
    assert np.abs(image.numpy().astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    plain = images.decode(encoded(picture(), form, **options), "x")
    turned = images.decode(encoded(picture(), form, exif=exif, **options), "x")
    assert torch.equal(turned, torch.rot90(plain, {1: 0, 3: 2, 6: 3, 8: 1}[orientation], dims=(1, 2)))


@pytest.mark.parametrize(("width", "height"), [(178, 218), (218, 178), (129, 128), (128, 128), (40, 47), (300, 17)])
@pytest.mark.parametrize(("size", "crop"), [(128, None), (32, None), (64, 31), (128, 128), (64, 1000)])
def test_fit_is_what_torchvision_does(width: int, height: int, size: int, crop: int | None) -> None:
    image = images.decode(encoded(picture(width, height), "JPEG"), "x")
    side = min(crop or height, height, width)
    expected = resize(center_crop(image, [side, side]), [size, size], antialias=True)
    fitted = images.fit(image, size, crop)
    assert torch.equal(fitted, expected) and fitted.is_contiguous()


def claiming(width: int, height: int) -> bytes:
    """A small JPEG whose header claims to be large."""
    data = bytearray(encoded(picture(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bad_pictures() -> dict[str, bytes]:
    jpeg, png = encoded(picture(), "JPEG"), encoded(picture(), "PNG")
    return {
        "empty": b"",
        "text": b"not a picture at all",
        "cut jpeg": jpeg[: len(jpeg) * 2 // 3],
        "jpeg header": jpeg[:2],
        "cut png": png[: len(png) // 2],
        "flipped png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "16 bits": encoded(Image.fromarray(np.full((20, 20), 40_000, np.uint16)), "PNG"),
        "an EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
        "too many pixels": encoded(Image.new("1", (8193, 8192)), "PNG"),
        "a bomb": claiming(65_500, 65_500),
        "one pixel": encoded(picture(1, 1), "PNG"),
        "narrow": encoded(picture(15, 200), "JPEG"),
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_bad_pictures_are_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "face.jpg").write_bytes(bad_pictures()[name])
    with pytest.raises(UserError) as caught:
        images.read(tmp_path / "face.jpg")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'face.jpg'}: ") and "\n" not in message
    told = {"one pixel": "at least 16", "narrow": "at least 16", "too many pixels": "more than", "a bomb": "more than"}
    assert told.get(name, "") in message
    with pytest.raises(UserError, match=re.escape(told.get(name, "x: "))):
        images.decode(bad_pictures()[name], "x")


def test_whatever_a_decoder_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged files make it AssertionError and OverflowError, among others."""

    def trip(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("PIL.Image.open", trip)
    with pytest.raises(UserError, match=r"^x: not a readable image"):
        images.decode(b"II*", "x")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_damage_never_becomes_another_error(form: str) -> None:
    random = np.random.default_rng(1)
    whole = encoded(picture(), form)
    refused = 0
    for _ in range(150):
        data = bytearray(whole[: int(random.integers(1, len(whole) + 1))])
        for place in random.integers(0, len(data), 3):
            data[place] = int(random.integers(256))
        try:
            image = images.decode(bytes(data), "x")
            assert image.dtype == torch.uint8 and image.shape[0] == 3
        except UserError:
            refused += 1
    assert refused > 75


def test_a_picture_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nobody\.jpg: No such file"):
        images.read(tmp_path / "nobody.jpg")
    with pytest.raises(UserError, match="Is a directory"):
        images.read(tmp_path)


@pytest.mark.parametrize(("crop", "side"), [(None, 40), (30, 30), (1000, 40)])
def test_fit_cuts_the_centre(crop: int | None, side: int) -> None:
    image = torch.arange(3 * 48 * 40, dtype=torch.int64).remainder(251).to(torch.uint8).view(3, 48, 40)
    top, left = (48 - side) // 2, (40 - side) // 2
    square = image[:, top : top + side, left : left + side]
    assert torch.equal(images.fit(image, side, crop), square)
    small = images.fit(image, 16, crop)
    assert small.shape == (3, 16, 16) and small.dtype == torch.uint8 and small.is_contiguous()
    pillow = Image.fromarray(square.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BILINEAR)
    difference = small.int() - torch.from_numpy(np.array(pillow)).permute(2, 0, 1).int()
    assert difference.abs().max() <= 1  # antialiased, as Pillow's is
    assert images.fit(image, 64, crop).shape == (3, 64, 64)


def test_celeba_crop() -> None:
    image = torch.zeros(3, 218, 178, dtype=torch.uint8)
    image[:, 20:198] = 255
    assert torch.equal(images.fit(image, 128), torch.full((3, 128, 128), 255, dtype=torch.uint8))


def test_scaling_is_exact_and_invertible() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    scaled = images.normalise(values)
    assert scaled.dtype == torch.float32
    assert scaled[0] == -1 and scaled[-1] == 1
    np.testing.assert_allclose(scaled.numpy(), np.arange(256) * 2 / 255 - 1, atol=1e-6)
    assert torch.equal(images.to_uint8(scaled), values)
    assert images.to_uint8(torch.tensor([-1.2, 1.2, 0.0])).tolist() == [0, 255, 128]
    assert torch.equal(images.to_uint8(scaled.half()), values)


def test_pillow_round_trip() -> None:
    image = images.decode(encoded(picture(), "PNG"), "x")
    assert torch.equal(images.from_pillow(images.to_pillow(image)), image)
    assert images.to_pillow(image).size == (40, 48)


def test_what_is_not_needed_is_not_imported(tmp_path: Path) -> None:
    """`stage` and `doctor` need no torch, and `fuse` no torchvision: each takes seconds to import."""
    (tmp_path / "x.jpg").write_bytes(encoded(picture(), "JPEG"))
    code = (
        "import sys; from pathlib import Path; from pipeline.data.shards import reader, staging;"
        "from pipeline.data.source import photographs; assert 'torch' not in sys.modules;"
        "from pipeline.data import images;"
        f"images.fit(images.read(Path({str(tmp_path / 'x.jpg')!r})), 32); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
