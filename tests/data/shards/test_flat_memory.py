"""A million samples through the loader: memory stays where it was after the first hundred thousand."""

import multiprocessing
from pathlib import Path

import pytest

from pipeline.config.schema import DataConfig
from pipeline.data.loading.loader import FaceImages
from pipeline.data.loading.order import Order

SAMPLES, EVERY, BATCH = 1_000_000, 100_000, 125
ALLOWED_MIB = 4
"""Growth from the first measurement to the last: 4 bytes a sample."""


def own_mib(process: int | str = "self") -> float:
    """Memory of a process that is no file's and no one else's."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")


@pytest.mark.slow
def test_a_million_samples(folder: Path) -> None:
    faces = FaceImages(folder, DataConfig(image_size=32, workers=1))
    seen, trainer, workers = 0, [], []
    for batch in faces.micro_batches(Order(len(faces), 0, BATCH, BATCH), 0, SAMPLES // BATCH):
        seen += len(batch[0].images)
        if seen % EVERY == 0:
            trainer.append(own_mib())
            workers.append(sum(own_mib(child.pid or 0) for child in multiprocessing.active_children()))
    assert seen == SAMPLES and len(trainer) == SAMPLES // EVERY
    print(f"MiB after every {EVERY} samples: trainer {trainer}, worker {workers}")
    assert trainer[-1] - trainer[0] < ALLOWED_MIB and workers[-1] - workers[0] < ALLOWED_MIB
