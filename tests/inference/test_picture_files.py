"""Pictures on disk: endings, what a PNG says of itself, and moving pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import file_size_limit, listing, picture

from pipeline.common.errors import UserError
from pipeline.inference import picture_files

ABOUT = {"Software": "latentfuse", "command": "latentfuse fuse b ä.jpg 日.jpg", "lambda": "0.5"}


def test_a_png_keeps_every_pixel_and_says_where_it_comes_from(tmp_path: Path) -> None:
    shown = picture(1, (300, 200))
    picture_files.save(shown, tmp_path / "c.PNG", ABOUT)
    with Image.open(tmp_path / "c.PNG") as read:
        assert read.format == "PNG" and np.array_equal(np.asarray(read), np.asarray(shown))
        assert {name: str(text) for name, text in read.info.items()} == ABOUT


@pytest.mark.parametrize("name", ["c.jpg", "c.JPEG"])
def test_a_jpeg_is_one(tmp_path: Path, name: str) -> None:
    shown = picture(1, (300, 200))
    picture_files.save(shown, tmp_path / name, ABOUT)
    with Image.open(tmp_path / name) as read:
        assert read.format == "JPEG" and not {"comment", "exif"} & set(read.info)
        assert np.abs(np.asarray(read).astype(int) - np.asarray(shown)).mean() < 2


@pytest.mark.parametrize("name", ["c", "c.bmp", "c.png.txt", ".png", "png", "c.webp"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: ends with none of \.png, \.jpg, \.jpeg"):
        picture_files.save(picture(1), tmp_path / name)
    assert not listing(tmp_path)


@pytest.mark.parametrize("name", ["m.webp", "m.gif"])
def test_a_moving_picture_goes_there_and_back_for_ever(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (64, 48), (50 * number, 0, 100)) for number in range(4)]
    picture_files.save_moving(frames, tmp_path / name)
    with Image.open(tmp_path / name) as read:
        assert (read.n_frames, read.info["loop"]) == (6, 0)  # type: ignore[attr-defined]
        reds, rests = [], []
        for number in range(6):
            read.seek(number)
            read.load()
            reds.append(round(np.asarray(read.convert("RGB"))[..., 0].mean() / 50))
            rests.append(read.info["duration"])
    assert reds == [0, 1, 2, 3, 2, 1]
    assert rests[0] == rests[3] > 5 * rests[1] and rests[1] == rests[2] == rests[4] == rests[5]
    with pytest.raises(UserError, match=r"m\.png: ends with none of \.webp, \.gif"):
        picture_files.save_moving(frames, tmp_path / "m.png")


@pytest.mark.parametrize(("name", "most"), [("c.jpg", "65,500"), ("m.webp", "16,383")])
def test_what_a_format_cannot_hold_is_named(tmp_path: Path, name: str, most: str) -> None:
    wide = Image.new("RGB", (66_000, 16))
    with pytest.raises(UserError, match=f"66,000 x 16 pixels; .* at most {most} a side"):
        picture_files.save_moving([wide], tmp_path / name) if name == "m.webp" else picture_files.save(
            wide, tmp_path / name
        )
    picture_files.save(wide, tmp_path / "c.png")
    assert listing(tmp_path) == {"c.png"}


def moving(path: Path) -> None:
    picture_files.save_moving([picture(number, (100, 100)) for number in range(3)], path)


def still(path: Path) -> None:
    picture_files.save(picture(1, (400, 400)), path)


@pytest.mark.parametrize(("name", "save"), [("c.png", still), ("c.jpg", still), ("m.webp", moving), ("m.gif", moving)])
def test_no_room_leaves_what_was_there(tmp_path: Path, name: str, save: Callable[[Path], None]) -> None:
    (tmp_path / name).write_bytes(b"old")
    with file_size_limit(400), pytest.raises(UserError, match=f"{name}: cannot be written"):
        save(tmp_path / name)
    assert listing(tmp_path) == {name} and (tmp_path / name).read_bytes() == b"old"
