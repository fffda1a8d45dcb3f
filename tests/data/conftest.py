"""A source in CelebA's layout, and its finished shards."""

from pathlib import Path

import pytest
from making import COUNT, jpeg

from pipeline.data.shards.writing import write_shards


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images with attributes, landmarks and a partition."""
    root = tmp_path_factory.mktemp("source") / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, COUNT + 1)]
    for seed, name in enumerate(names):
        (root / "img_align_celeba" / name).write_bytes(jpeg(seed))
    attributes = "".join(f"{name} 1 -1\n" for name in names)
    (root / "list_attr_celeba.txt").write_text(f"{COUNT}\nMale Young\n{attributes}")
    points = "".join(f"{name} 10 14 29 33\n" for name in names)
    header = "lefteye_x lefteye_y nose_x nose_y"
    (root / "list_landmarks_align_celeba.txt").write_text(f"{COUNT}\n{header}\n{points}")
    partition = "".join(f"{name} {0 if i < 15 else 1 if i < 19 else 2}\n" for i, name in enumerate(names))
    (root / "list_eval_partition.txt").write_text(partition)
    return root


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A finished shards folder: 18 samples in 4 shards."""
    write_shards(source, tmp_path / "out", split="0.2", samples_per_shard=5, workers=1)
    return tmp_path / "out" / "train"
