"""Which images get into the shards, and as what."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from making import COUNT, hashes, jpeg, read_all
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.data.shards.array_jobs import Part
from pipeline.data.shards.format import ShardReader, load_manifest
from pipeline.data.shards.verifying import verify
from pipeline.data.shards.writing import write_shards
from pipeline.data.source.celeba import open_source
from pipeline.data.source.splits import split_records


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
    assert {name: split.samples for name, split in summary.splits.items()} == {"train": 15, "validation": 4, "test": 4}
    assert list(read_all(tmp_path / "official" / "test")) == ["000020", "000021", "000022", "000023"]
    assert json.loads(json.dumps(summary.as_dict()))["samples"] == COUNT
    for split, message in [("paper", "--split 0.1"), ("half", "'half'"), ("1.5", "between 0 and 1"), ("0.999", "none")]:
        with pytest.raises(UserError, match=message):
            write_shards(source, tmp_path / "refused", split=split)
    assert not (tmp_path / "refused").exists()
    bare = tmp_path / "bare"
    shutil.copytree(source / "img_align_celeba", bare / "photos")
    with pytest.raises(UserError, match=r"list_eval_partition\.txt"):
        write_shards(bare, tmp_path / "refused", split="official")


def test_paper_split_holds_out_the_last_2599(source: Path) -> None:
    record = open_source(source).records[0]
    many = [record] * 202_599
    splits = split_records(many, "paper")
    assert {name: len(records) for name, records in splits.items()} == {"train": 200_000, "test": 2_599}


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
    (tmp_path / "foreign" / "train").mkdir(parents=True)
    (tmp_path / "foreign" / "train" / "x.tar").touch()
    with pytest.raises(UserError, match="did not plan"):
        write_shards(source, tmp_path / "foreign", split="0.2")


def test_options_out_of_range(source: Path, tmp_path: Path) -> None:
    for options in ({"samples_per_shard": 0}, {"image_size": 4}, {"crop": 100}, {"quality": 0}, {"quality": 50}):
        with pytest.raises(UserError, match=next(iter(options)).replace("_", " ")):
            write_shards(source, tmp_path / "out", split="0.2", **options)


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


def bad_images(root: Path) -> dict[str, str]:
    """Add unusable images; return the reason expected for each."""
    whole = jpeg(7, (64, 64))
    damaged = {
        "b-cut.jpg": (whole[: len(whole) // 2], "cannot be decoded"),
        "b-end.jpg": (whole[:-2], "cannot be decoded"),
        "b-text.jpg": (b"these are not the bytes you are looking for\n", "not a JPEG or PNG"),
        "b-pixel.jpg": (jpeg(7, (1, 1)), "1 x 1 pixels"),
        "b-empty.png": (b"", "empty file"),
        "b-gif.jpg": (jpeg(7, form="GIF"), "not a JPEG or PNG"),
        "b-png.png": (jpeg(7, form="PNG")[:-40], "cannot be decoded"),
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
    with pytest.raises(UserError, match=r"8 images rejected, 0 allowed \(b-.*--max-rejected 8"):
        write_shards(root, out, split="0.1", samples_per_shard=6, workers=2)
    assert not (out / "train" / "manifest.json").exists()
    summary = write_shards(root, out, split="0.1", samples_per_shard=6, workers=2, max_rejected=8)
    assert summary.written == 0, "what was written before the refusal is used"
    found = {rejected.file: rejected.reason for rejected in load_manifest(out / "train").rejected}
    assert found.keys() == reasons.keys() and len(summary.rejected) == len(reasons)
    for name, reason in reasons.items():
        assert reason in found[name], f"{name}: {found[name]}"
    # A gap, not a shift: a-0 .. a-5, then nothing but rejects, then c-0 .. c-3.
    assert [shard.samples for shard in load_manifest(out / "train").shards] == [6, 0, 4]
    assert verify(out / "train", workers=1).ok
    assert list(read_all(out / "train")) == [ShardReader(out / "train").read(i)[0] for i in range(10)]


@pytest.mark.parametrize("parts", [1, 2])
def test_pictures_that_could_not_be_read_are_read_again(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    shares: list[dict[str, Any]] = [{}] if parts == 1 else [{"part": Part(1, 2)}, {"part": Part(2, 2)}]

    def write(**how: Any) -> None:
        write_shards(source, tmp_path / "new", split="0.2", samples_per_shard=5, workers=1, **how)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.source.celeba.Source.read", raising(OSError(5, "Input/output error")))
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
            assert reader.index.locate(i).extension == ("png" if content[:4] == b"\x89PNG" else "jpg")
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


def test_exif_orientation(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    picture = Image.new("RGB", (60, 40))
    picture.paste((255, 255, 255), (0, 0, 60, 20))  # white above; turned for display: white on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "b.jpg"):
        picture.save(root / name, exif=exif)
    write_shards(root, tmp_path / "small", split="0.5", image_size=32, workers=1)
    pixels = np.asarray(Image.open(io.BytesIO(ShardReader(tmp_path / "small" / "train").read(0)[1])).convert("L"))
    assert pixels[:, 20:].mean() > 240 and pixels[:, :12].mean() < 15
    write_shards(root, tmp_path / "untouched", split="0.5", workers=1)
    metadata = ShardReader(tmp_path / "untouched" / "train").metadata(0)
    assert (metadata["width"], metadata["height"]) == (40, 60)


def test_without_validation_the_same_shards(source: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(source, mixed)
    turned = Image.Exif()
    turned[0x0112] = 6
    odd = {
        "000024.jpg": jpeg(24, (40, 48), exif=turned),
        "000025.jpg": jpeg(25, progressive=True, mode="L"),
        "000026.png": jpeg(26, (40, 48), form="PNG", exif=turned),
        "000027.jpg": jpeg(27, mode="CMYK", comment=b"\xff\xc0 is no frame here"),
    }
    for name, content in odd.items():
        (mixed / "img_align_celeba" / name).write_bytes(content)
    whole, fast = tmp_path / "whole", tmp_path / "fast"
    write_shards(mixed, whole, split="0.2", samples_per_shard=4)
    write_shards(mixed, fast, split="0.2", samples_per_shard=4, validate=False)
    expected, found = hashes(whole), hashes(fast)
    told = {name for name in expected if name.endswith((".tar", ".index.json"))}
    assert (
        len(told) == 2 * (6 + 2) and {name for name in expected if expected[name] != found[name]} == found.keys() - told
    )
    for name in ("train/manifest.json", "plan.json"):
        without, validated = json.loads((fast / name).read_bytes()), json.loads((whole / name).read_bytes())
        assert without["options"].pop("validate") is False and without == validated
    assert verify(fast / "test", workers=1).ok


def test_what_is_rejected_without_validation(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(3):
        (root / f"a-{number}.jpg").write_bytes(jpeg(number))
        (root / f"z-{number}.jpg").write_bytes(jpeg(number))
    reasons = bad_images(root)
    passed = {"b-end.jpg", "b-png.png"}  # their headers are whole
    (root / "c-header.jpg").write_bytes(jpeg(1)[:80])
    write_shards(root, tmp_path / "out", split="0.2", validate=False, max_rejected=len(reasons))
    manifests = [load_manifest(tmp_path / "out" / split) for split in ("train", "test")]
    found = {each.file: each.reason for manifest in manifests for each in manifest.rejected}
    assert found.keys() == reasons.keys() - passed | {"c-header.jpg"}
    assert all(reasons[name] in reason for name, reason in found.items() if name in reasons)
    assert not verify(tmp_path / "out" / "train", workers=1).ok


def test_validated_and_not_do_not_mix(source: Path, folder: Path, tmp_path: Path) -> None:
    """Plans of shards that are validated do not say so: those of earlier versions go on."""
    assert "validate" not in json.loads((folder.parent / "plan.json").read_bytes())["options"]
    options = {"split": "0.2", "samples_per_shard": 5}
    with pytest.raises(UserError, match=r"\(validate: True there, False now\)"):
        write_shards(source, folder.parent, validate=False, **options)  # type: ignore[arg-type]
    write_shards(source, tmp_path / "fast", validate=False, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"\(validate: False there, True now\)"):
        write_shards(source, tmp_path / "fast", **options)  # type: ignore[arg-type]
    again = write_shards(source, tmp_path / "fast", validate=False, **options)  # type: ignore[arg-type]
    assert again.written == 0
    with pytest.raises(UserError, match="image size: 32 without validation"):
        write_shards(source, tmp_path / "small", image_size=32, validate=False, **options)  # type: ignore[arg-type]
