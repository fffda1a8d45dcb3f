"""One encoded image: what is found out without decoding it as its users will, is what they would find."""

import random
import struct

import pytest
from making import jpeg
from PIL import Image

from pipeline.data import image_check as encoded
from pipeline.data import images
from pipeline.data.image_check import ImageRejected, check, describe

SIZE = (61, 47)
KINDS = {
    "plain": {},
    "colours at full size": {"subsampling": 0},
    "progressive": {"progressive": True, "subsampling": 2},
    "restarts": {"restart_marker_rows": 1},
    "own tables": {"optimize": True, "quality": 30},
    "grey": {"mode": "L"},
    "four inks": {"mode": "CMYK"},
}


def verdict(data: bytes, in_colour: bool) -> str | None:
    """Why the image is rejected; None if it is taken."""
    try:
        if in_colour:
            encoded._open(data, encoded._load)
        else:
            check(data)
    except ImageRejected as reason:
        return str(reason)
    return None


def damaged(whole: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(2, len(whole))
    match chance.randrange(4):
        case 0:
            return whole[:place]
        case 1:
            return whole[:place] + whole[place + chance.randrange(1, 40) :]
        case 2:
            return whole[:place] + chance.randbytes(chance.randrange(1, 5)) + whole[place:]
        case _:
            return whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]


@pytest.mark.parametrize("kind", KINDS)
def test_grey_finds_what_colours_would(kind: str) -> None:
    """A thousand damages: the same are rejected."""
    chance = random.Random(kind)
    whole = jpeg(1, SIZE, **KINDS[kind])
    assert verdict(whole, in_colour=False) is None
    rejected = 0
    for _ in range(1000):
        data = damaged(whole, chance)
        reason = verdict(data, in_colour=True)
        assert verdict(data, in_colour=False) == reason
        rejected += reason is not None
    assert 100 < rejected < 900


def test_jpeg_without_its_end_is_rejected() -> None:
    """Pillow decodes a few of them; other decoders refuse."""
    for seed in range(200):
        whole = jpeg(seed)
        assert check(whole).data == whole
        with pytest.raises(ImageRejected):
            check(whole[:-2])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_accepted_can_be_trained_on(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Pillow passes over markers within a scan in silence."""
    chance = random.Random(kind)
    whole = jpeg(1, SIZE, **KINDS[kind])
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data) // 2, len(data) - 3)] = 0xFF
        if verdict(bytes(data), in_colour=False) is None:
            images.decode(bytes(data), kind)
        else:
            refused += 1
    assert refused > 30
    capfd.readouterr()  # what libjpeg says of each


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_a_photograph_does_not_count(kind: str) -> None:
    """Phones append a film to theirs."""
    whole, chance = jpeg(1, SIZE, **KINDS[kind]), random.Random(kind)
    for _ in range(100):
        assert check(whole + chance.randbytes(20_000)).width == SIZE[0]
    assert check(whole + b"ftypmp42\xff\xda\x12").width == SIZE[0]
    assert "cannot be decoded" in str(verdict(whole[:-2] + b"ftypmp42\xff\xda\x12", in_colour=False))


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
def test_up_is_where_training_has_it(data: bytes, is_turned: bool) -> None:
    trained_on = images.decode(data, "picture")
    size = (trained_on.shape[2], trained_on.shape[1])
    assert size == (SIZE[::-1] if is_turned else SIZE)
    for image in (check(data), describe(data)):
        assert (image.width, image.height) == size
    square, _ = encoded.centre_square(data, 47, None, 95)
    difference = images.decode(square.data, "square").float() - images.fit(trained_on, 47).float()
    assert difference.abs().mean() < 5


def test_colours_that_no_decoder_can_enlarge() -> None:
    """Grey alone would be decoded; but the image's users want colours."""
    whole = jpeg(1, SIZE, subsampling=0)
    frame = whole.index(b"\xff\xc0")
    odd = bytearray(whole)
    odd[frame + 11], odd[frame + 14], odd[frame + 17] = 0x31, 0x21, 0x21  # 3 samples across to 2
    with Image.open(encoded.io.BytesIO(odd)) as image:
        image.draft("L", None)
        image.load()
    assert "cannot be decoded" in str(verdict(bytes(odd), in_colour=False))


def test_a_header_is_known_by_all_of_it() -> None:
    for seed, size in ((1, SIZE), (2, SIZE), (3, (40, 48)), (4, SIZE)):
        image = describe(jpeg(seed, size))
        assert (image.width, image.height) == size
    whole = jpeg(5, SIZE)
    for comment in (b"\xff\xda", b"\xff\xda" + bytes(20), b"before \xff\xda"):
        segment = b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment
        assert describe(whole[:2] + segment + whole[2:])[1:] == ("jpg", *SIZE)
        assert encoded._plain_jpeg_size(whole[:2] + segment + whole[2:]) == SIZE
