"""Annotation files beside photographs, and the landmarks of one photograph."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from running import latentfuse
from trying import FEW_AND_MANY, answered, changes, cuts, flips, many, refused

NAMES = [f"{number:03d}.jpg" for number in range(4)]
ATTRIBUTES = "4\nMale Young\n" + "".join(f"{name} 1 -1\n" for name in NAMES)
LANDMARKS = "4\nlefteye_x lefteye_y nose_x nose_y\n" + "".join(f"{name} 10 14 29 33\n" for name in NAMES)
PARTITION = "".join(f"{name} {0 if name < '003.jpg' else 2}\n" for name in NAMES)
FILES = {
    "list_attr_celeba": ATTRIBUTES,
    "list_landmarks_align_celeba": LANDMARKS,
    "list_eval_partition": PARTITION,
}
ROW = f"{NAMES[0]} 1 -1\n"
BAD: dict[str, tuple[str, bytes]] = {
    "nothing": ("list_attr_celeba.txt", b""),
    "not UTF-8": ("list_attr_celeba.txt", b"4\n\xff \xfe\n"),
    "a count that is none": ("list_attr_celeba.txt", ATTRIBUTES.replace("4\n", "many\n", 1).encode()),
    "fewer than counted": ("list_attr_celeba.txt", ATTRIBUTES.replace("4\n", "5\n", 1).encode()),
    "a column twice": ("list_attr_celeba.txt", ATTRIBUTES.replace("Young", "Male").encode()),
    "a column twice in a .csv": ("list_attr_celeba.csv", b"image_id,Male,Male\n000.jpg,1,1\n"),
    "an image twice": ("list_attr_celeba.txt", (ATTRIBUTES.replace("4\n", "5\n", 1) + ROW).encode()),
    "a number too many": ("list_attr_celeba.txt", ATTRIBUTES.replace("1 -1", "1 -1 1", 1).encode()),
    "digits": ("list_attr_celeba.txt", ATTRIBUTES.replace("1 -1", f"{'9' * 400} -1", 1).encode()),
    "thousands of digits": ("list_landmarks_align_celeba.txt", LANDMARKS.replace("10", "9" * 5000, 1).encode()),
    "a fraction": ("list_landmarks_align_celeba.txt", LANDMARKS.replace("10", "1.5", 1).encode()),
    "1e308": ("list_landmarks_align_celeba.txt", LANDMARKS.replace("10", "1e308", 1).encode()),
    "odd columns": ("list_landmarks_align_celeba.txt", LANDMARKS.replace("nose_y", "nose_z", 1).encode()),
    "a partition of five": ("list_eval_partition.txt", PARTITION.replace(" 2", " 5").encode()),
    "no name for images": ("list_eval_partition.csv", b"name,partition\n000.jpg,0\n"),
    "control characters": ("list_attr_celeba.csv", b"image_id,\x1b[2J\n000.jpg,x\n"),
    "megabytes": ("list_attr_celeba.txt", b"\n" * (2**26 + 1)),
}


@pytest.mark.parametrize("kind", BAD)
def test_annotations(source: Path, tmp_path: Path, kind: str) -> None:
    name, content = BAD[kind]
    (source / name).write_bytes(content)
    result = refused(tmp_path, "shard", source, tmp_path / "out", "--split", "0.3", "--workers", "1")
    assert name in result.errors


@pytest.mark.parametrize("stem", FILES)
@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_damaged_annotations(source: Path, tmp_path: Path, stem: str, count: int) -> None:
    path, whole = source / f"{stem}.txt", FILES[stem].encode()
    for data in (*flips(whole, count), *cuts(whole, max(3, count // 20))):
        path.write_bytes(data)
        try_shard(source, tmp_path / "out")


def try_shard(source: Path, out: Path) -> None:
    """How many images are listed may be told above the line."""
    result = latentfuse(
        "shard",
        source,
        out,
        "--split",
        "official" if "partition" in str([*source.iterdir()]) else "0.3",
        "--workers",
        "1",
    )
    assert result.code in (0, 2) and "Traceback" not in result.errors, result
    assert all(line.isprintable() for line in result.errors.splitlines())
    shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_any_table(source: Path, tmp_path: Path, count: int) -> None:
    cells = st.sampled_from(
        ["image_id", *NAMES, "1", "-1", "٣", "1_0", "+1", "", '"', "\x0b", "\u2028", "\0", "9" * 30]
    )

    def try_one(lines: list[list[str]]) -> None:
        (source / "list_attr_celeba.csv").write_text("\n".join(map(",".join, lines)))
        try_shard(source, tmp_path / "out")

    many(st.lists(st.lists(cells, max_size=4), max_size=6), 3 * count, try_one)


POINTS = {"lefteye": [20, 30], "righteye": [44, 30], "nose": [32, 40], "leftmouth": [24, 52], "rightmouth": [40, 52]}
WHOLE = {"landmarks": POINTS, "width": 64, "height": 80}


def moved(**points: Any) -> str:
    return json.dumps(WHOLE | {"landmarks": POINTS | points})


LANDMARK_FILES: dict[str, str | bytes] = {
    "nothing": "",
    "not UTF-8": b"\xff\xff",
    "a thousand levels": "[" * 1000 + "]" * 1000,
    "a hundred levels": moved(nose=json.loads("[" * 100 + "]" * 100)),
    "a list": "[]",
    "no points": "{}",
    "points of another kind": '{"landmarks": {"lefteye": [1, 2]}}',
    "400 digits": moved(nose=[10**400, 1]),
    "39 digits": moved(nose=[10**39, 1]),
    "1e308": moved(nose=[1e308, 1]),
    "-1e308": moved(lefteye=[-1e308, 1e308]),
    "1e999": moved(nose=[1, 1]).replace("[1, 1]", "[1e999, 1]"),
    "NaN": moved(nose=[float("nan"), 1]),
    "true": moved(nose=[True, 1]),
    "a text": moved(nose=["1", 1]),
    "three numbers": moved(nose=[1, 2, 3]),
    "both eyes on one point": moved(righteye=POINTS["lefteye"]),
    "all on one point": moved(**{name: [5, 5] for name in POINTS}),
    "far away": moved(**{name: [x + 10_000, y] for name, (x, y) in POINTS.items()}),
    "of another size": json.dumps(WHOLE | {"width": 10**30}),
    "of a size that is a list": json.dumps(WHOLE | {"width": [[1] * 1000]}),
    "a point twice": json.dumps(WHOLE).replace('"nose"', '"lefteye"', 1),
    "megabytes": " " * 2**25,
}


@pytest.mark.parametrize("kind", LANDMARK_FILES)
def test_landmarks(untrained: Path, tmp_path: Path, good: Path, kind: str) -> None:
    content = LANDMARK_FILES[kind]
    path, out = tmp_path / "landmarks.json", tmp_path / "fused.png"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(tmp_path, "fuse", untrained, good, good, "--region", "eyes", "--landmarks", path, "-o", out)


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_anything_in_the_place_of_a_point(untrained: Path, tmp_path: Path, good: Path, count: int) -> None:
    path, out = tmp_path / "landmarks.json", tmp_path / "fused.png"

    def try_one(changed: Any) -> None:
        path.write_text(json.dumps(changed))
        answered(tmp_path, "fuse", untrained, good, good, "--region", "eyes", "--landmarks", path, "-o", out)
        out.unlink(missing_ok=True)

    many(changes(WHOLE), 3 * count, try_one)
