"""Images on their way into shards: what is accepted can be trained on, and is described as training sees it."""

import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from making import jpeg
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.data.image_check import centre_square, check, silent

SIZE = (61, 47)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "colours at full size": {"subsampling": 0},
    "progressive": {"progressive": True, "subsampling": 2},
    "restarts": {"restart_marker_rows": 1},
    "own tables": {"optimize": True, "quality": 30},
    "grey": {"mode": "L"},
    "four inks": {"mode": "CMYK"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_decoders_give_the_same_pixels(tmp_path: Path, kind: str) -> None:
    """Training and sharding use torchvision, single photographs Pillow."""
    exif = Image.Exif()
    exif[0x0112] = 8
    (tmp_path / "x.jpg").write_bytes(jpeg(1, SIZE, exif=exif, **KINDS[kind]))
    by_pillow, by_torchvision = images.read(tmp_path / "x.jpg"), images.decode((tmp_path / "x.jpg").read_bytes(), "x")
    assert by_pillow.shape == by_torchvision.shape == (3, *SIZE)
    difference = (by_pillow.int() - by_torchvision.int()).abs().max()
    assert difference <= (2 if kind == "four inks" else 0)  # each rounds ink in its own way


OTHERS: dict[str, dict[str, Any]] = {"png": {"form": "PNG"}, "webp": {"form": "WEBP"}}


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_damage_is_rejected_or_harmless(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever `check` accepts decodes again; and libjpeg, which does not name the image, is kept quiet."""
    chance = random.Random(kind)
    whole = jpeg(1, SIZE, **(KINDS | OTHERS)[kind])
    accepted, messages = [], []
    for _ in range(300):
        data, place = bytearray(whole), chance.randrange(2, len(whole) - 3)
        data[place : place + chance.randrange(4)] = chance.choice((b"", b"\xff", chance.randbytes(3)))
        try:
            with silent():
                accepted.append(check(bytes(data), kind))
        except UserError as error:
            messages.append(str(error))
    assert len(accepted) < 280 and (len(accepted) > 20 or kind in OTHERS)
    assert all(message.startswith(f"{kind}: not a readable image: ") and "\n" not in message for message in messages)
    assert capfd.readouterr() == ("", "")
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
    for image in accepted:
        assert images.decode(image.data, kind).shape == (3, image.height, image.width)
    capfd.readouterr()


def test_a_jpeg_without_its_end_is_rejected() -> None:
    for seed in range(100):
        whole = jpeg(seed)
        assert check(whole, "x").data == whole
        with pytest.raises(UserError, match="x: not a readable image"):
            check(whole[:-2], "x")


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_a_photograph_does_not_count(kind: str) -> None:
    """Phones append a film to theirs."""
    whole, chance = jpeg(1, SIZE, **KINDS[kind]), random.Random(kind)
    for more in (chance.randbytes(20_000), b"ftypmp42\xff\xda\x12"):
        assert check(whole + more, "x").width == SIZE[0]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_orientation(form: str, orientation: int, quarters: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = images.decode(jpeg(1, SIZE, form=form, lossless=True), "x")
    turned = images.decode(jpeg(1, SIZE, form=form, lossless=True, exif=exif), "x")
    assert torch.equal(turned, torch.rot90(plain, quarters, dims=(1, 2)))


def turned(tags: bytes = b"", xmp: bytes = b"") -> bytes:
    """A photograph of 61 x 47 whose EXIF says to turn it by a quarter, with more `tags`, or none but those."""
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tags + bytes(4)
    segments = [(0xE1, exif)] if tags else []
    segments += [(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)] if xmp else []
    whole = jpeg(1, SIZE)
    added = b"".join(struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content for marker, content in segments)
    return whole[:2] + added + whole[2:]


ORIENTATION = struct.pack("<HHII", 0x0112, 3, 1, 6)
ODD_RESOLUTION = struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")  # a text where a fraction belongs
XMP = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("data", "is_turned"),
    [
        (turned(struct.pack("<H", 1) + ORIENTATION), True),
        (turned(struct.pack("<H", 2) + ORIENTATION + ODD_RESOLUTION), True),
        (turned(xmp=XMP), False),
        (turned(struct.pack("<H", 1) + ODD_RESOLUTION, XMP), False),
        (turned(struct.pack("<H", 9) + ORIENTATION[:5]), False),
    ],
    ids=["usual", "odd tag", "XMP alone", "odd tag and XMP", "cut"],
)
def test_everyone_turns_a_photograph_alike(data: bytes, is_turned: bool, tmp_path: Path) -> None:
    trained_on = images.decode(data, "picture")
    size = (trained_on.shape[2], trained_on.shape[1])
    assert size == (SIZE[::-1] if is_turned else SIZE)
    assert check(data, "x")[2:] == size
    (tmp_path / "x.jpg").write_bytes(data)
    assert torch.equal(images.read(tmp_path / "x.jpg"), trained_on)
    square, _ = centre_square(data, "x", 47, None, 95)
    difference = images.decode(square.data, "square").float() - images.fit(trained_on, 47).float()
    assert difference.abs().mean() < 5
