"""Small images and tars for the tests of shards, and ways to look at what was written."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

COUNT = 23


def jpeg(
    seed: int, size: tuple[int, int] = (40, 48), mode: str = "RGB", form: str = "JPEG", **options: object
) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def jpegs(folder: Path, count: int) -> Path:
    """A folder filled with 000.jpg, 001.jpg, ..."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(number))
    return folder


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path; hidden files included."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_all(folder: Path) -> dict[str, tuple[bytes, dict[str, object]]]:
    """What plain webdataset reads."""
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = webdataset.WebDataset(tars, shardshuffle=False)
    return {sample["__key__"]: (sample["jpg"], json.loads(sample["json"])) for sample in samples}


def member_offsets(tar: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(tar) as archive:
        return archive.getmembers()
