"""Painted faces: the same bytes for the same seed, CelebA's formats, and factors that are what is seen."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.data.synth import faces as synth
from pipeline.data.synth.faces import Factors, draw_factors, landmarks, paint, write_faces
from pipeline.data.synth.factors import GLASSES, HAIR_STYLES, attributes

PLAIN = dataclasses.replace(
    draw_factors(0, 1),
    hair_style="short",
    glasses="none",
    beard="none",
    eye_openness=0.8,
    skin_tone=0.2,
    yaw=0.0,
    roll=0.0,
)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def darkness(picture: Image.Image, point: tuple[int, int], radius: int) -> float:
    """The darkest grey value near a point."""
    x, y = point
    return float(np.asarray(picture.convert("L"))[y - radius : y + radius + 1, x - radius : x + radius + 1].min())


def test_same_seed_same_bytes_whatever_the_workers_and_the_count(tmp_path: Path) -> None:
    write_faces(tmp_path / "one", 70, seed=3)
    write_faces(tmp_path / "two", 70, seed=3, workers=2)
    write_faces(tmp_path / "few", 5, seed=3)
    one, two, few = (read_tree(tmp_path / name) for name in ("one", "two", "few"))
    assert one == two
    assert all(few[name] == one[name] for name in few if name.endswith(".jpg"))
    write_faces(tmp_path / "few", 70, seed=3)
    assert read_tree(tmp_path / "few") == one


def test_other_seed_paints_other_faces() -> None:
    assert draw_factors(1, 1) != draw_factors(2, 1) != draw_factors(2, 2)


def test_layout_reads_back_as_celeba(tmp_path: Path) -> None:
    write_faces(tmp_path, 20)
    names = [f"{index:06d}.jpg" for index in range(1, 21)]
    assert sorted(path.name for path in (tmp_path / "img_align_celeba").iterdir()) == names
    with Image.open(tmp_path / "img_align_celeba" / names[0]) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (178, 218))

    lines = (tmp_path / "list_attr_celeba.txt").read_text().splitlines()
    assert lines[0] == "20" and len(lines) == 22
    header = lines[1].split()
    assert {"Bald", "Eyeglasses", "Smiling", "Mouth_Slightly_Open", "Facing_Left"} <= set(header)
    for index, line in enumerate(lines[2:], 1):
        name, *signs = line.split()
        assert name == names[index - 1]
        assert dict(zip(header, (sign == "1" for sign in signs), strict=True)) == attributes(draw_factors(0, index))
        assert set(signs) <= {"1", "-1"}

    lines = (tmp_path / "list_landmarks_align_celeba.txt").read_text().splitlines()
    assert lines[0] == "20" and lines[1].split()[:2] == ["lefteye_x", "lefteye_y"]
    name, *numbers = lines[2].split()
    points = [tuple(map(int, numbers[k : k + 2])) for k in range(0, 10, 2)]
    assert name == names[0] and points == list(landmarks(draw_factors(0, 1)).values())

    parts = [line.split() for line in (tmp_path / "list_eval_partition.txt").read_text().splitlines()]
    assert [name for name, _ in parts] == names
    assert [part for _, part in parts] == ["0"] * 16 + ["1"] * 2 + ["2"] * 2


def test_factors_file_keeps_every_factor(tmp_path: Path) -> None:
    write_faces(tmp_path, 3, seed=9)
    with (tmp_path / "list_factors.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for index, row in enumerate(rows, 1):
        assert row.pop("image_id") == f"{index:06d}.jpg"
        types: dict[str, type] = get_type_hints(Factors)
        assert Factors(**{name: types[name](value) for name, value in row.items()}) == draw_factors(9, index)


def test_factors_vary_within_their_ranges() -> None:
    drawn = [draw_factors(0, index) for index in range(400)]
    assert {factors.hair_style for factors in drawn} == set(HAIR_STYLES)
    assert {factors.glasses for factors in drawn} == set(GLASSES)
    for name in ("yaw", "smile", "light_x", "face_width"):
        values = np.array([getattr(factors, name) for factors in drawn])
        assert values.min() < -0.9 and values.max() > 0.9 and abs(values.mean()) < 0.12
    for name in ("skin_tone", "eye_colour", "light_strength"):
        values = np.array([getattr(factors, name) for factors in drawn])
        assert 0 <= values.min() < 0.05 and 0.95 < values.max() <= 1
    yaw, smile = (np.array([getattr(factors, name) for factors in drawn]) for name in ("yaw", "smile"))
    assert abs(np.corrcoef(yaw, smile)[0, 1]) < 0.15


def test_eyes_stay_where_celeba_has_them() -> None:
    for index in range(200):
        places = landmarks(draw_factors(1, index))
        for name, (x, y) in {"lefteye": (69, 111), "righteye": (108, 111)}.items():
            assert abs(places[name][0] - x) <= 7 and abs(places[name][1] - y) <= 4
        assert places["lefteye"][0] < places["nose"][0] < places["righteye"][0]
        assert places["nose"][1] < places["leftmouth"][1] < 170


@pytest.mark.parametrize("yaw", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_landmarks_sit_on_the_features(yaw: float) -> None:
    factors = dataclasses.replace(PLAIN, yaw=yaw)
    picture, places = paint(factors), landmarks(factors)
    for eye in ("lefteye", "righteye"):
        assert darkness(picture, places[eye], 1) < 60  # the pupil
    shut, wide = (dataclasses.replace(factors, mouth_open=value, lipstick=1.0) for value in (0.0, 1.0))
    for corner in ("leftmouth", "rightmouth"):
        cheek = (places[corner][0], places[corner][1] - 9)
        assert darkness(picture, places[corner], 2) < darkness(picture, cheek, 2) - 15
    change = np.abs(np.asarray(paint(shut), int) - np.asarray(paint(wide), int)).sum(axis=-1)
    rows, columns = np.nonzero(change)
    left, right = places["leftmouth"], places["rightmouth"]
    assert abs(columns.min() - left[0]) <= 4 and abs(columns.max() - right[0]) <= 4
    assert min(left[1], right[1]) - 12 < rows.min() and rows.max() < max(left[1], right[1]) + 20


def test_yaw_moves_the_nose_and_narrows_the_far_eye() -> None:
    left, ahead, right = (landmarks(dataclasses.replace(PLAIN, yaw=yaw)) for yaw in (-1.0, 0.0, 1.0))
    assert left["nose"][0] < ahead["nose"][0] - 5 and right["nose"][0] > ahead["nose"][0] + 5
    assert right["righteye"][0] - right["lefteye"][0] < ahead["righteye"][0] - ahead["lefteye"][0] - 3


def test_light_falls_from_its_side() -> None:
    def excess(light_x: float) -> float:
        factors = dataclasses.replace(PLAIN, light_x=light_x, light_strength=1.0)
        grey = np.asarray(paint(factors).convert("L"), float)
        return float(grey[120:145, 55:75].mean() - grey[120:145, 103:123].mean())

    assert excess(-1.0) > 15 and excess(1.0) < -15


def test_attributes_agree_with_factors() -> None:
    found = attributes(
        dataclasses.replace(PLAIN, hair_style="bald", glasses="sunglasses", smile=0.9, yaw=-0.8, mouth_open=0.5)
    )
    for name in ("Bald", "Eyeglasses", "Sunglasses", "Smiling", "Facing_Left", "Mouth_Slightly_Open"):
        assert found[name]
    for name in ("Black_Hair", "Blond_Hair", "Brown_Hair", "Bangs", "Facing_Right", "Mustache"):
        assert not found[name]


def test_rerun_keeps_images_and_repairs_what_is_missing(tmp_path: Path) -> None:
    write_faces(tmp_path, 4)
    before = read_tree(tmp_path)
    first = tmp_path / "img_align_celeba" / "000001.jpg"
    stamp = first.stat().st_mtime_ns
    (tmp_path / "img_align_celeba" / "000003.jpg").unlink()
    (tmp_path / "img_align_celeba" / ".000003-0123abcd.tmp.jpg").write_bytes(b"half")
    (tmp_path / "list_attr_celeba.txt").unlink()
    write_faces(tmp_path, 4)
    assert read_tree(tmp_path) == before and first.stat().st_mtime_ns == stamp


def test_interrupt_leaves_whole_files_that_the_next_run_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_faces(tmp_path / "whole", 5)
    painted = 0

    def interrupted(factors: Factors) -> Image.Image:
        nonlocal painted
        painted += 1
        if painted == 4:
            raise KeyboardInterrupt
        return paint(factors)

    with monkeypatch.context() as patch:
        patch.setattr(synth, "paint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_faces(tmp_path / "cut", 5)
    assert len(list((tmp_path / "cut" / "img_align_celeba").iterdir())) == 3
    assert not json.loads((tmp_path / "cut" / "synth.json").read_text())["complete"]
    with pytest.raises(UserError, match="seed 0, not 1"):
        write_faces(tmp_path / "cut", 5, seed=1)
    write_faces(tmp_path / "cut", 5)
    assert read_tree(tmp_path / "cut") == read_tree(tmp_path / "whole")


@pytest.mark.parametrize(
    "arguments", [{"count": 0}, {"count": 10**6}, {"count": 1, "seed": -1}, {"count": 1, "workers": 0}]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be from"):
        write_faces(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        write_faces(tmp_path / "file", 1)
    with pytest.raises(UserError, match="cannot write"):
        write_faces(tmp_path / "file" / "below", 1)
    with pytest.raises(UserError, match="not painted by synth"):
        write_faces(tmp_path, 1)
    write_faces(tmp_path / "faces", 3)
    with pytest.raises(UserError, match="more than count 2"):
        write_faces(tmp_path / "faces", 2)
    (tmp_path / "faces" / "synth.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        write_faces(tmp_path / "faces", 3)
