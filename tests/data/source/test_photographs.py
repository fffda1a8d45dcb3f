"""Sources: every layout that people have, told apart and read alike; and what is wrong with a bad one."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
from making import jpeg
from running import latentfuse

from pipeline.common.errors import UserError
from pipeline.data.source.photographs import open_source

NAMES = [f"{number:06d}.jpg" for number in range(1, 7)]


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(seed))


def annotate(folder: Path, names: list[str], form: str = "txt") -> None:
    """The three files, as CelebA has them or, as `csv`, the copy on Kaggle."""
    tables: dict[str, tuple[list[str], list[tuple[int, ...]]]] = {
        "list_attr_celeba": (["Male", "Young"], [(1 if i % 2 else -1, 1) for i in range(len(names))]),
        "list_landmarks_align_celeba": (
            ["lefteye_x", "lefteye_y", "nose_x", "nose_y"],
            [(i, 2, 3, 4) for i in range(len(names))],
        ),
        "list_eval_partition": (["partition"], [(i % 3,) for i in range(len(names))]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for stem, (columns, rows) in tables.items():
        head = "" if stem == "list_eval_partition" else f"{len(names)}\n{' '.join(columns)}\n"
        between, head = (",", f"image_id,{','.join(columns)}\r\n") if form == "csv" else (" ", head)
        lines = (between.join(map(str, (name, *row))) for name, row in zip(names, rows, strict=True))
        (folder / f"{stem}.{form}").write_text(head + "".join(f"{line}\n" for line in lines))


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """CelebA's folder layout."""
    root = tmp_path / "celeba"
    for seed, name in enumerate(NAMES):
        picture(root / "img_align_celeba" / name, seed)
    annotate(root, NAMES)
    return root


def zipped(root: Path, target: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.mkdir("img_align_celeba")
        for path in sorted((root / "img_align_celeba").iterdir()):
            archive.write(path, f"img_align_celeba/{path.name}")
        archive.writestr("__MACOSX/img_align_celeba/._000001.jpg", b"junk")
        archive.writestr("img_align_celeba/.hidden.jpg", b"junk")
    return target


def test_folder_records(celeba: Path) -> None:
    source = open_source(celeba)
    assert [record.key for record in source.records] == [name[:-4] for name in NAMES]
    assert [record.name for record in source.records] == NAMES
    assert source.records[1].attributes == {"Male": 1, "Young": 1}
    assert source.records[2].attributes == {"Male": -1, "Young": 1}
    assert source.records[5].landmarks == {"lefteye": [5, 2], "nose": [3, 4]}
    assert [record.partition for record in source.records] == [0, 1, 2, 0, 1, 2]
    assert source.read(NAMES[3]) == (celeba / "img_align_celeba" / NAMES[3]).read_bytes()


def test_annotations_inside_the_zip(celeba: Path, tmp_path: Path) -> None:
    """As in Kaggle's download; those outside come first."""
    path = zipped(celeba, tmp_path / "elsewhere.zip", zipfile.ZIP_DEFLATED)
    annotate(tmp_path / "csv", NAMES, "csv")
    with zipfile.ZipFile(path, "a") as archive:
        for file in sorted((tmp_path / "csv").iterdir()):
            archive.write(file, file.name)
    for there, outside in zip(open_source(path).records, open_source(celeba).records, strict=True):
        assert (there.key, there.partition) == (outside.key, outside.partition)
        assert (there.attributes, there.landmarks) == (outside.attributes, outside.landmarks)
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{name} 2\n" for name in NAMES))
    assert {record.partition for record in open_source(path).records} == {2}
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more/list_attr_celeba.txt", "not one")
    with pytest.raises(UserError, match=r"elsewhere\.zip/more/list_attr_celeba\.txt: two header lines"):
        open_source(path)


def test_annotations_that_do_not_fit_are_not_passed_over(celeba: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotate(celeba, NAMES[:4], "csv")
    (celeba / "list_attr_celeba.txt").unlink()
    assert [bool(record.attributes) for record in open_source(celeba).records] == [True] * 4 + [False] * 2
    assert capsys.readouterr().err == f"{celeba / 'list_attr_celeba.csv'}: lists 4 of the 6 images\n"
    for folder in ("a", "b"):
        picture(celeba / "img_align_celeba" / folder / NAMES[0])
    with pytest.raises(UserError, match=r"csv: 000001.jpg may be 000001.jpg or a/000001.jpg; list them by these"):
        open_source(celeba)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_reads_as_folder(celeba: Path, tmp_path: Path, compression: int) -> None:
    expected = open_source(celeba)
    alone = tmp_path / "zipped"
    alone.mkdir()
    archive = zipped(celeba, alone / "img_align_celeba.zip", compression)
    annotate(alone, NAMES)
    for path in (archive, alone):
        source = open_source(path)
        assert source.records == expected.records
        again = pickle.loads(pickle.dumps(source))
        for name in NAMES:
            assert source.read(name) == again.read(name) == expected.read(name)


def test_other_layouts(celeba: Path, tmp_path: Path) -> None:
    def known(path: Path) -> list[tuple[object, ...]]:
        records = open_source(path).records
        return [(each.key, each.name, each.partition, each.attributes, each.landmarks) for each in records]

    expected = known(celeba)
    images = celeba / "img_align_celeba"
    assert known(images) == expected  # annotations one level up

    kaggle = tmp_path / "kaggle"
    shutil.copytree(images, kaggle / "img_align_celeba" / "img_align_celeba")
    annotate(kaggle, NAMES, "csv")
    assert known(kaggle) == expected
    assert known(kaggle / "img_align_celeba") == expected

    original = tmp_path / "original"
    (original / "Img").mkdir(parents=True)
    annotate(original / "Anno", NAMES)
    (original / "Eval").mkdir()
    (original / "Anno" / "list_eval_partition.txt").rename(original / "Eval" / "list_eval_partition.txt")
    assert known(zipped(celeba, original / "Img" / "img_align_celeba.zip")) == expected

    images.rename(celeba / "img_celeba")  # the landmarks of aligned pictures are not theirs
    assert known(celeba / "img_celeba") == [(*each[:4], {}) for each in expected]


def test_any_folder(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for seed, name in enumerate(
        ["one/a.b.JPG", "two/a.jpeg", "two/deep er/c.PNG", "d.webp", ".hidden/x.jpg", "__MACOSX/y.jpg"]
    ):
        picture(root / name, seed)
    (root / "notes.txt").write_text("no image")
    source = open_source(root)
    assert {record.name: record.key for record in source.records} == {
        "d.webp": "d",
        "one/a.b.JPG": "one_a_b",
        "two/a.jpeg": "two_a",
        "two/deep er/c.PNG": "two_deep_er_c",
    }
    assert source.records[0].attributes == {} and source.records[0].landmarks == {}
    assert source.records[0].partition is None


def test_colliding_and_long_keys(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    names = ["a.jpg", "a.png", "b_c.jpg", "b/c.jpg", "陽.jpg", "山.jpg", "x" * 150 + ".jpg", "plain.jpg"]
    for name in names:
        picture(root / name)
    keys = {record.name: record.key for record in open_source(root).records}
    assert keys["plain.jpg"] == "plain"
    assert len(set(keys.values())) == len(names)
    assert all(len(key) <= 80 and "." not in key and "/" not in key and key.isascii() for key in keys.values())
    assert keys == {record.name: record.key for record in open_source(root).records}


def test_fingerprint_follows_content(celeba: Path) -> None:
    before = open_source(celeba).fingerprint
    assert open_source(celeba).fingerprint == before
    attributes = celeba / "list_attr_celeba.txt"
    attributes.write_text(attributes.read_text().replace("000002.jpg 1", "000002.jpg -1"))
    changed = open_source(celeba).fingerprint
    assert changed != before
    (celeba / "img_align_celeba" / NAMES[0]).unlink()
    assert open_source(celeba).fingerprint not in (before, changed)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("list_attr_celeba.txt", "000003.jpg -1 1", "000003.jpg -1", "list_attr_celeba.txt:5: 2 values"),
        ("list_attr_celeba.txt", "000003.jpg -1", "000003.jpg yes", "list_attr_celeba.txt:5: whole numbers"),
        ("list_attr_celeba.txt", "000006.jpg 1 1\n", "", "list_attr_celeba.txt:1: says '6' images, but 5"),
        ("list_attr_celeba.txt", "000003.jpg", "000002.jpg", "list_attr_celeba.txt:5: 000002.jpg is listed twice"),
        ("list_attr_celeba.txt", "000003.jpg -1", f"000003.jpg {'9' * 400}", "list_attr_celeba.txt:5: numbers up to"),
        ("list_attr_celeba.txt", "Male Young", "Male Male", "list_attr_celeba.txt: the column 'Male' is there twice"),
        ("list_landmarks_align_celeba.txt", "nose_y", "nose", "pairs NAME_x NAME_y"),
        ("list_eval_partition.txt", "000002.jpg 1", "000002.jpg 7", "000002.jpg: partition must be 0, 1 or 2, not 7"),
    ],
)
def test_malformed_annotations(celeba: Path, file: str, old: str, new: str, message: str) -> None:
    path = celeba / file
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    with pytest.raises(UserError) as error:
        open_source(celeba)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("found", "ending"), [("007", "\n"), ("+7", "\n"), ("7", "\r\n"), ("7", "\n\n"), ("-0", "\n")])
def test_numbers_of_odd_form(celeba: Path, found: str, ending: str) -> None:
    path = celeba / "list_attr_celeba.txt"
    content = path.read_text().replace("000003.jpg -1 1\n", f"000003.jpg {found}\t1 {ending}")
    path.write_bytes(content.encode())
    record = open_source(celeba).records[2]
    assert record.attributes == {"Male": int(found), "Young": 1}
    assert record.attribute_values.split() == [str(int(found)), "1"]


def test_bad_sources(celeba: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.jpg"):
        open_source(tmp_path / "empty")
    archive = zipped(celeba, tmp_path / "img_align_celeba.zip")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or cut"):
        open_source(archive)
    damaged = bytearray(whole)
    damaged[whole.index(b"\xff\xd8") + 100] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC-32"):
        open_source(archive).read(NAMES[0])


def test_files_that_are_no_images_are_counted(celeba: Path, tmp_path: Path) -> None:
    images = celeba / "img_align_celeba"
    shutil.move(celeba / "list_attr_celeba.txt", images)
    assert open_source(celeba).ignored == {}, "annotations are read"
    for name in ("a.gif", "b.GIF", "notes.txt", "Makefile", "more/c.gif"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"junk")
    expected = {".gif": 3, ".txt": 1, "without an ending": 1}
    assert open_source(celeba).ignored == expected
    assert open_source(zipped(celeba, tmp_path / "a.zip")).ignored == expected | {".gif": 2}  # without the inner folder
    told = latentfuse("shard", celeba, tmp_path / "out", "--workers", "1").out
    assert told.splitlines()[-1] == "ignored as no images: 3 .gif, 1 .txt, 1 without an ending"
    told = latentfuse("shard", celeba, tmp_path / "out", "--json").out
    assert json.loads(told)["ignored"] == expected
    with pytest.raises(UserError, match=r"no .* images and no .* in it, but 1 \.gif"):
        open_source(images / "more")
