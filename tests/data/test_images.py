"""Photographs as tensors: what is read, what is refused, and exact scaling."""

import io
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import jpeg
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, resize

from pipeline.common.errors import UserError
from pipeline.data import images


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("PNG", mode) for mode in ("RGB", "RGBA", "L", "P")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    ],
)
def test_every_kind_becomes_rgb(form: str, mode: str) -> None:
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if form == "JPEG" and mode == "RGB" else {}
    data = jpeg(0, mode=mode, form=form, **options)
    image = images.decode(data, "x")
    assert image.shape == (3, 48, 40) and image.dtype == torch.uint8
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1).astype(int)
    tolerance = 4 if form == "JPEG" else 0
    assert np.abs(image.numpy().astype(int) - expected).max() <= tolerance
    assert torch.equal(images.from_pillow(images.to_pillow(image)), image)


@pytest.mark.parametrize(("width", "height"), [(178, 218), (218, 178), (129, 128), (128, 128), (40, 47), (300, 17)])
@pytest.mark.parametrize(("size", "crop"), [(128, None), (32, None), (64, 31), (128, 128), (64, 1000)])
def test_fit_is_what_torchvision_does(width: int, height: int, size: int, crop: int | None) -> None:
    image = images.decode(jpeg(0, (width, height)), "x")
    side = min(crop or height, height, width)
    expected = resize(center_crop(image, [side, side]), [size, size], antialias=True)
    fitted = images.fit(image, size, crop)
    assert torch.equal(fitted, expected)


def claiming(width: int, height: int) -> bytes:
    """A small JPEG whose header claims to be large."""
    data = bytearray(jpeg(0))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


WHOLE, PNG = jpeg(0), jpeg(0, form="PNG")
BAD = {
    "empty": b"",
    "text": b"not a picture at all",
    "cut jpeg": WHOLE[: len(WHOLE) * 2 // 3],
    "jpeg header": WHOLE[:2],
    "cut png": PNG[: len(PNG) // 2],
    "flipped png": PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
    "16 bits": jpeg(0, mode="I;16", form="PNG"),
    "an EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
    "too many pixels": jpeg(0, (8193, 8192), "1", "PNG"),
    "a bomb": claiming(65_500, 65_500),
    "one pixel": jpeg(0, (1, 1), form="PNG"),
    "narrow": jpeg(0, (15, 200)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_one_line(name: str, tmp_path: Path) -> None:
    data = BAD[name]
    (tmp_path / "face.jpg").write_bytes(data)
    with pytest.raises(UserError) as caught:
        images.read(tmp_path / "face.jpg")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'face.jpg'}: ") and "\n" not in message
    told = {"one pixel": "at least 16", "narrow": "at least 16", "too many pixels": "more than", "a bomb": "more than"}
    assert told.get(name, "") in message
    with pytest.raises(UserError, match=re.escape(told.get(name, "x: "))):
        images.decode(data, "x")


def test_whatever_a_decoder_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged files make it AssertionError and OverflowError, among others."""

    def trip(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("PIL.Image.open", trip)
    with pytest.raises(UserError, match=r"^x: not a readable image"):
        images.decode(b"II*", "x")


def test_a_picture_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nobody\.jpg: No such file"):
        images.read(tmp_path / "nobody.jpg")
    with pytest.raises(UserError, match="Is a directory"):
        images.read(tmp_path)


def test_scaling_is_exact_and_invertible() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    scaled = images.normalise(values)
    assert scaled.dtype == torch.float32
    assert scaled[0] == -1 and scaled[-1] == 1
    np.testing.assert_allclose(scaled.numpy(), np.arange(256) * 2 / 255 - 1, atol=1e-6)
    assert torch.equal(images.to_uint8(scaled), values)
    assert images.to_uint8(torch.tensor([-1.2, 1.2, 0.0])).tolist() == [0, 255, 128]
    assert torch.equal(images.to_uint8(scaled.half()), values)


def test_what_is_not_needed_is_not_imported(tmp_path: Path) -> None:
    """`stage` and `doctor` need no torch, and `fuse` no torchvision: each takes seconds to import."""
    (tmp_path / "x.jpg").write_bytes(jpeg(0))
    code = (
        "import sys; from pathlib import Path; from pipeline.data.shards import reader, staging;"
        "from pipeline.data.source import photographs; assert 'torch' not in sys.modules;"
        "from pipeline.data import images;"
        f"images.fit(images.read(Path({str(tmp_path / 'x.jpg')!r})), 32); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
