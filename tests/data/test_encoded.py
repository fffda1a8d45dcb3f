"""One encoded image: what is found out without decoding it as its users will, is what they would find."""

import random

import pytest
from making import jpeg
from PIL import Image

from pipeline.data import encoded
from pipeline.data.encoded import ImageRejected, check, describe

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
