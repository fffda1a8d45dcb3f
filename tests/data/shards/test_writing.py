"""Which images get into the shards, and as what."""

import hashlib
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from making import COUNT, hashes, jpeg, read_all
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.data.shards.array_jobs import Part
from pipeline.data.shards.format import load_manifest
from pipeline.data.shards.reader import ShardReader
from pipeline.data.shards.verifying import verify
from pipeline.data.shards.writing import write_shards
from pipeline.data.source.photographs import Record, open_source
from pipeline.data.source.splits import split_records, usual_split

OLD = "46018ddbdd731b85f943783acdc07fc0272729c33995f6f00d9f675ce633fc9b"


def test_same_bytes_for_any_workers_and_source_form(source: Path, tmp_path: Path) -> None:
    for workers in (1, 2, 3):
        write_shards(source, tmp_path / f"{workers}", split="0.2", samples_per_shard=4, workers=workers)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2") == hashes(tmp_path / "3")
    packed = tmp_path / "packed"
    packed.mkdir()
    with zipfile.ZipFile(packed / "img_align_celeba.zip", "w") as archive:
        for path in (source / "img_align_celeba").iterdir():
            archive.write(path, f"img_align_celeba/{path.name}")
    for path in source.glob("list_*"):
        shutil.copy(path, packed)
    write_shards(packed, tmp_path / "zip", split="0.2", samples_per_shard=4, workers=2)
    data = {name: value for name, value in hashes(tmp_path / "1").items() if "shard-" in name}
    assert len(data) == 2 * 7
    assert {name: value for name, value in hashes(tmp_path / "zip").items() if "shard-" in name} == data


def test_splits(source: Path, tmp_path: Path) -> None:
    summary = write_shards(source, tmp_path / "official", split="official", samples_per_shard=5, workers=1)
    assert {name: split.manifest.samples for name, split in summary.splits.items()} == {
        "train": 15,
        "validation": 4,
        "test": 4,
    }
    assert list(read_all(tmp_path / "official" / "test")) == ["000020", "000021", "000022", "000023"]
    assert json.loads(json.dumps(summary.as_dict()))["samples"] == COUNT
    for split, message in [
        ("paper", "--split auto"),
        ("half", "'half'"),
        ("1.5", "between 0 and 1"),
        ("0.999", "none"),
    ]:
        with pytest.raises(UserError, match=message):
            write_shards(source, tmp_path / "refused", split=split)
    assert not (tmp_path / "refused").exists()
    record = open_source(source).records[0]
    records = [Record(str(key), f"{key}.jpg") for key in range(28)]
    assert split_records(records, "0.1") == {"train": records[:25], "test": records[25:]}  # 2.8 images
    paper = split_records([record] * 202_599, "paper")
    assert {name: len(records) for name, records in paper.items()} == {"train": 200_000, "test": 2_599}
    bare = tmp_path / "bare"
    shutil.copytree(source / "img_align_celeba", bare / "photos")
    with pytest.raises(UserError, match=r"list_eval_partition\.txt"):
        write_shards(bare, tmp_path / "refused", split="official")
    for split in ("0.1", "paper", "auto", "official"):
        with pytest.raises(UserError, match="1 image here; at least 2 are needed"):
            split_records([record], split)


def test_the_usual_split_is_what_the_number_of_images_allows(source: Path, tmp_path: Path) -> None:
    assert [usual_split(images) for images in (2, 19_999, 20_000, 202_599)] == ["0.1", "0.1", "paper", "paper"]
    summary = write_shards(source, tmp_path / "out", workers=1)
    assert {name: split.manifest.samples for name, split in summary.splits.items()} == {"train": 21, "test": 2}
    assert summary.splits["test"].manifest.options["split"] == "0.1"
    write_shards(source, tmp_path / "other", split="0.2", workers=1)
    again = write_shards(source, tmp_path / "other", workers=1)
    assert again.written == 0, "a folder keeps the split that it was begun with"
    (tmp_path / "other" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        write_shards(source, tmp_path / "other", workers=1)


def test_other_options_or_source_are_refused(source: Path, folder: Path, tmp_path: Path) -> None:
    before = hashes(folder.parent)
    with pytest.raises(UserError, match="samples_per_shard: 5 there, 6 now"):
        write_shards(source, folder.parent, split="0.2", samples_per_shard=6)
    with pytest.raises(UserError, match="image_size: None there, 32 now; quality: None there, 90 now"):
        write_shards(source, folder.parent, split="0.2", samples_per_shard=5, image_size=32)
    write_shards(source, folder.parent, split="0.2", samples_per_shard=5)
    other = tmp_path / "other"
    shutil.copytree(source, other)
    (other / "img_align_celeba" / "000001.jpg").write_bytes(jpeg(99))
    with pytest.raises(UserError, match="source: 23 images there, 23 now, or other files"):
        write_shards(other, folder.parent, split="0.2", samples_per_shard=5)
    assert hashes(folder.parent) == before
    plan = folder.parent / "plan.json"
    plan.write_text(plan.read_text().replace('"split"', '"validate": false, "split"'))  # of an earlier version
    with pytest.raises(UserError, match="written with --no-validate, which there is no longer"):
        write_shards(source, folder.parent, split="0.2", samples_per_shard=5)
    (tmp_path / "foreign" / "train").mkdir(parents=True)
    (tmp_path / "foreign" / "train" / "x.tar").touch()
    with pytest.raises(UserError, match="did not plan"):
        write_shards(source, tmp_path / "foreign", split="0.2")


def stored_png(number: int, width: int = 20, height: int = 17) -> bytes:
    """A PNG whose bytes depend on no library: its pixels are stored, not compressed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(x * y * number % 256 for x in range(3 * width)) for y in range(height))
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), 0xFFFF ^ len(rows)) + rows
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = stored + struct.pack(">I", zlib.adler32(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_the_bytes_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """A folder that one version has begun is continued by the next. The hash is of the version of November 2026."""
    root, out = tmp_path / "source", tmp_path / "out"
    root.mkdir()
    names = ["a.png", "b c.png", "d.png", '\u00fc"%.png', "x.png"]
    for number, name in enumerate(names, 1):
        (root / name).write_bytes(stored_png(number))
    rows = [f"{name},{number},-1,1\n" for number, name in enumerate(names)]
    (root / "list_attr_celeba.csv").write_text('image_id,Young,100%s,"q"\n' + "".join(rows))
    points = [f"{name},{number},2,3,-4\n" for number, name in enumerate(names)]
    header = "image_id,nose_x,nose_y,lefteye_x,lefteye_y\n"
    (root / "list_landmarks_align_celeba.csv").write_text(header + "".join(points))
    write_shards(root, out, split="0.4", samples_per_shard=2, workers=1)
    assert hashlib.sha256(json.dumps(hashes(out)).encode()).hexdigest() == OLD


@pytest.mark.parametrize("options", [{"crop": 100}, {"quality": 50}], ids=str)
def test_options_that_need_an_image_size(source: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))}: .* without an image size"):
        write_shards(source, tmp_path / "out", split="0.2", **options)


def bad_images(root: Path) -> dict[str, str]:
    """Add unusable images; return the reason expected for each."""
    whole = jpeg(7, (64, 64))
    damaged = {
        "b-cut.jpg": (whole[: len(whole) // 2], "not a readable image"),
        "b-end.jpg": (whole[:-2], "Image is incomplete or truncated"),
        "b-text.jpg": (b"these are not the bytes you are looking for\n", "neither JPEG, PNG nor WebP"),
        "b-pixel.jpg": (jpeg(7, (1, 1)), "1 x 1 pixels"),
        "b-empty.png": (b"", "the file is empty"),
        "b-gif.jpg": (jpeg(7, form="GIF"), "neither JPEG, PNG nor WebP"),
        "b-png.png": (jpeg(7, form="PNG")[:-40], "not a readable image"),
        "b-webp.webp": (jpeg(7, form="WEBP")[:-40], "not a readable image"),
        "b-deep.png": (jpeg(7, mode="I;16", form="PNG"), "8 bits"),
    }
    for name, (content, _) in damaged.items():
        (root / name).write_bytes(content)
    return {name: reason for name, (_, reason) in damaged.items()}


def test_rejected_inputs(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(6):
        (root / f"a-{number}.jpg").write_bytes(jpeg(number))
        (root / f"c-{number}.jpg").write_bytes(jpeg(number))
    reasons = bad_images(root)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"9 images rejected, 0 allowed \(b-.*--max-rejected 9"):
        write_shards(root, out, split="0.1", samples_per_shard=6, workers=2)
    assert not (out / "train" / "manifest.json").exists()
    summary = write_shards(root, out, split="0.1", samples_per_shard=6, workers=2, max_rejected=9)
    assert summary.written == 0, "what was written before the refusal is used"
    found = {rejected.file: rejected.reason for rejected in load_manifest(out / "train").rejected}
    assert found.keys() == reasons.keys() and len(summary.rejected) == len(reasons)
    for name, reason in reasons.items():
        assert reason in found[name], f"{name}: {found[name]}"
    # A gap, not a shift: a-0 .. a-5, then nothing but rejects, then three of them and c-0 .. c-2, then c-3.
    assert [shard.samples for shard in load_manifest(out / "train").shards] == [6, 0, 3, 1]
    assert not verify(out / "train", workers=1).problems
    assert list(read_all(out / "train")) == [ShardReader(out / "train").read(i)[0] for i in range(10)]


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for name, content in ((b"a.jpg", jpeg(1)), (b"b\xff.jpg", jpeg(2)), (b"c\xff.jpg", b"text"), (b"d.jpg", jpeg(3))):
        (root / os.fsdecode(name)).write_bytes(content)
    write_shards(root, tmp_path / "out", split="0.25", workers=1, max_rejected=1)
    reader = ShardReader(tmp_path / "out" / "train")
    assert reader.metadata(1)["file"] == os.fsdecode(b"b\xff.jpg")
    assert [each.file for each in reader.manifest.rejected] == ["c\\udcff.jpg"]


@pytest.mark.parametrize("parts", [1, 2])
def test_pictures_that_could_not_be_read_are_read_again(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    shares: list[dict[str, Any]] = [{}] if parts == 1 else [{"part": Part(1, 2)}, {"part": Part(2, 2)}]

    def write(**how: Any) -> None:
        write_shards(source, tmp_path / "new", split="0.2", samples_per_shard=5, workers=1, **how)

    def fail(*_: object) -> NoReturn:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.source.photographs.Source.read", fail)
        for share in shares:
            with pytest.raises(UserError, match="images rejected, 0 allowed"):
                write(**share)
    for share in shares:
        write(**share)
    if parts > 1:
        write(finish=True)
    assert hashes(tmp_path / "new") == hashes(folder.parent)


def test_odd_but_usable_images_pass_untouched(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    images = {
        "grey.jpg": jpeg(1, mode="L"),
        "cmyk.jpg": jpeg(2, mode="CMYK"),
        "alpha.png": jpeg(3, mode="RGBA", form="PNG"),
        "palette.png": jpeg(4, mode="P", form="PNG"),
        "named-wrongly.jpg": jpeg(5, form="PNG"),
        "web.WebP": jpeg(7, form="WEBP"),
        "plain.JPEG": jpeg(6),
    }
    for name, content in images.items():
        (root / name).write_bytes(content)
    write_shards(root, tmp_path / "out", split="0.3", workers=1)
    for split in ("train", "test"):
        reader = ShardReader(tmp_path / "out" / split)
        for i in range(len(reader)):
            name = reader.metadata(i)["file"]
            content = images.pop(name)
            assert reader.read(i)[1] == content
            ending = {b"\x89P": "png", b"RI": "webp", b"\xff\xd8": "jpg"}[content[:2]]
            assert reader.locate(i).extension == ending
    assert not images


def test_crop_resize_moves_landmarks(tmp_path: Path) -> None:
    """A white dot is found again where its landmark says."""
    root = tmp_path / "celeba"
    root.mkdir()
    spots = {}
    for number in range(4):
        x, y = 40 + 20 * number, 150 - 15 * number
        picture = Image.new("RGB", (178, 218))
        picture.paste((255, 255, 255), (x - 3, y - 3, x + 4, y + 4))
        picture.save(root / f"{number}.png")
        spots[f"{number}.png"] = (x, y)
    rows = "".join(f"{name} {x} {y}\n" for name, (x, y) in spots.items())
    (root / "list_landmarks_align_celeba.txt").write_text(f"4\nnose_x nose_y\n{rows}")
    for crop in (None, 150):
        out = tmp_path / f"out-{crop}"
        write_shards(root, out, split="0.25", image_size=128, crop=crop, quality=95, workers=1)
        reader = ShardReader(out / "train")
        for i in range(len(reader)):
            image = Image.open(io.BytesIO(reader.read(i)[1]))
            assert (image.size, image.format, image.mode) == ((128, 128), "JPEG", "RGB")
            light = np.asarray(image.convert("L"), float)
            light[light < 40] = 0
            rows_, columns = np.indices(light.shape)
            centre = [(columns * light).sum() / light.sum(), (rows_ * light).sum() / light.sum()]
            metadata = reader.metadata(i)
            assert metadata["landmarks"]["nose"] == pytest.approx(centre, abs=0.25)
            assert (metadata["width"], metadata["height"]) == (128, 128)
