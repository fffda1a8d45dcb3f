"""Micro-batches: the right images in the right order, and an unreadable image named."""

import io
import multiprocessing
import os
import re
import shutil
import signal
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.config.schema import DataConfig
from pipeline.data.loading import workers as workers_of_a_loader
from pipeline.data.loading.loader import FaceImages, Loaded, MicroBatch
from pipeline.data.loading.order import Order
from pipeline.data.shards.reader import ShardReader
from pipeline.data.shards.writing import write_shards


def dataset(folder: Path, workers: int = 0, flip: bool = False, **options: Any) -> FaceImages:
    return FaceImages(folder, DataConfig(image_size=32, workers=workers, horizontal_flip=flip, **options))


def order(rank: int = 0, world: int = 1) -> Order:
    return Order(count=18, seed=1, global_batch_size=12, micro_batch_size=3, rank=rank, world_size=world)


def steps(folder: Path, workers: int, first: int, last: int, rank: int = 0, world: int = 1) -> list[list[MicroBatch]]:
    return list(dataset(folder, workers).micro_batches(order(rank, world), first, last))


def with_pillow(folder: Path, index: int, side: int = 40) -> np.ndarray:
    """Decoded, cropped and resized without torch."""
    picture = Image.open(io.BytesIO(ShardReader(folder).read(index)[1])).convert("RGB")
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("crop", [None, 30])
def test_images_are_those_that_pillow_makes(folder: Path, crop: int | None) -> None:
    faces = dataset(folder, flip=True, crop=crop)
    assert len(faces) == 18
    expected = np.stack([with_pillow(folder, index, crop or 40) for index in (4, 17, 4)])
    images = faces.load([4, 17, 4])
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32
    assert np.abs(images.numpy() - (expected / 127.5 - 1)).max() < 0.04
    assert np.abs(image_of(faces[17]).numpy().astype(int) - expected[1]).max() <= 4


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_the_global_order(folder: Path, workers: int) -> None:
    faces = dataset(folder)
    for step, batch in zip(range(2, 6), steps(folder, workers, 2, 6), strict=True):
        expected = order().indices(step)
        assert [micro.span for micro in batch] == order().slices()
        for micro in batch:
            assert micro.images.shape == (3, 3, 32, 32) and micro.images.dtype == torch.uint8
            assert micro.keys == tuple(faces.reader.key(i) for i in expected[micro.span])
            assert torch.equal(micro.images, torch.stack([image_of(faces[int(i)]) for i in expected[micro.span]]))


def test_ranks_together_see_what_one_rank_sees(folder: Path) -> None:
    alone = [micro for batch in steps(folder, 0, 0, 2) for micro in batch]
    ranks = [steps(folder, 0, 0, 2, rank, 2) for rank in range(2)]
    together = [micro for step in range(2) for rank in range(2) for micro in ranks[rank][step]]
    assert [micro.keys for micro in together] == [micro.keys for micro in alone]
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, together, strict=True))


def test_flips_follow_the_order(folder: Path) -> None:
    plain, mirrored = dataset(folder), dataset(folder, flip=True)
    seen = []
    for step, batch in enumerate(mirrored.micro_batches(order(), 0, 2)):
        for micro in batch:
            indices, flips = order().indices(step)[micro.span], order().flips(step)[micro.span]
            assert micro.flips is not None and np.array_equal(micro.flips, flips)
            for image, index in zip(micro.images, indices, strict=True):
                assert torch.equal(image, image_of(plain[int(index)])), "training mirrors them"
            seen += flips.tolist()
    assert True in seen and False in seen
    assert not any(micro.flips is None or micro.flips.any() for micro in next(plain.micro_batches(order(), 0, 1)))
    assert steps(folder, 0, 3, 3) == []


def damage(folder: Path, index: int, whole: bool = False) -> str:
    """Overwrite the middle of a sample in its tar (`whole`: all of it); what a message must say of it."""
    sample = ShardReader(folder).locate(index)
    with (folder / sample.shard).open("r+b") as tar:
        tar.seek(sample.offset if whole else sample.offset + sample.length // 2)
        tar.write(b"\0" * (sample.length if whole else 8))
    return f"{folder / sample.shard}: sample {sample.key}: "


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["bytes", "no picture", "no shard"])
def test_an_unreadable_image_is_named(folder: Path, workers: int, fault: str) -> None:
    bad = int(order().indices(1)[4])
    named = damage(folder, bad, whole=fault == "no picture")
    faces = dataset(folder, workers)
    if fault == "no picture":  # whole as the index has it, but no image: only the decoder can tell
        faces.reader.columns["crc32"][bad] = zlib.crc32(b"\0" * int(faces.reader.columns["length"][bad]))
    if fault == "no shard":
        (folder / faces.reader.locate(bad).shard).unlink()
    batches = faces.micro_batches(order(), 0, 4)
    if fault != "no shard" and bad not in order().indices(0):
        assert len(next(batches)) == 4
    with pytest.raises(UserError) as caught:
        list(batches)
    message = str(caught.value)
    if fault == "no shard":
        assert re.search(r"shard-\d{6}\.tar: sample \d{6}: the shard cannot be read", message)
    else:
        assert message.startswith(named)
    assert "Traceback" not in message and "\n" not in message
    with pytest.raises(UserError, match="sample"):
        faces.load([bad])
    # Workers ignore SIGTERM: one that outlives the error keeps the process from ending.
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("waits", [False, True], ids=["at work", "waits for its disk"])
def test_leaving_early_leaves_no_workers(folder: Path, monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    monkeypatch.setattr(workers_of_a_loader, "GRACE_SECONDS", 0.5)
    batches = dataset(folder, workers=2).micro_batches(order(), 0, 100)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers if waits else ():
        os.kill(worker.pid or 0, signal.SIGSTOP)
    began = time.monotonic()
    batches.close()
    assert not multiprocessing.active_children() and time.monotonic() - began < 5


def test_a_worker_that_cannot_be_killed_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for a disk that does not answer; at its end Python would wait for it."""
    monkeypatch.setattr(workers_of_a_loader, "GRACE_SECONDS", 0.5)
    batches = dataset(folder, workers=2).micro_batches(order(), 0, 100)
    next(batches)
    stuck = multiprocessing.active_children()
    for worker in stuck:
        os.kill(worker.pid or 0, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.process.BaseProcess, "kill", lambda self: None)
        began = time.monotonic()
        batches.close()
    assert not multiprocessing.active_children() and time.monotonic() - began < 3
    for worker in stuck:
        assert worker.is_alive()
        worker.kill()
        worker.join()


def test_too_little_shared_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, which has 64 MB unless told otherwise."""
    usage = shutil.disk_usage("/dev/shm")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
    with pytest.raises(UserError, match=r"data.workers: 1 need 1 MiB in /dev/shm, 0 MiB are free; use fewer"):
        steps(folder, 1, 0, 1)
    assert not multiprocessing.active_children()


def image_of(loaded: Loaded | UserError) -> torch.Tensor:
    assert isinstance(loaded, Loaded) and not loaded.problems and loaded.image.dtype == torch.uint8
    return loaded.image


@pytest.mark.parametrize("workers", [0, 2])
def test_as_many_bad_samples_as_allowed_are_replaced_and_named(
    folder: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    named = [damage(folder, index) for index in (3, 4, 17)]
    faces = dataset(folder, workers, max_bad_samples=3)
    with pytest.raises(UserError, match="sample"):
        faces.load([3])  # an evaluation never substitutes another image
    assert torch.equal(faces.load_as_trained([3, 4]), faces.load([5, 5]))
    assert capfd.readouterr().err.count("allowed): ") == 2
    seen = 0
    for step, batch in enumerate(faces.micro_batches(order(), 0, 6)):
        for micro in batch:
            for image, index in zip(micro.images, order().indices(step)[micro.span], strict=True):
                stands_in = {3: 5, 4: 5, 17: 0}.get(int(index), int(index))
                assert torch.equal(image, image_of(faces[stands_in]))
                seen += stands_in != index
    assert seen >= 6
    told = capfd.readouterr().err
    assert [told.count(f"allowed): {name}damaged") for name in named] == [1, 1, 1]
    assert "left out (3 of 3 allowed)" in told
    assert faces.calibration(order(), 18).shape == (18, 3, 32, 32)


def test_one_bad_sample_too_many_stops(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index in (3, 9):
        damage(folder, index)
    with pytest.raises(UserError, match=r"sample 000010: damaged.*; more than data.max_bad_samples=1 cannot be read"):
        dataset(folder, max_bad_samples=1).first(18)
    capfd.readouterr()
    with pytest.raises(UserError, match=r"sample \d+: damaged.*; more than data.max_bad_samples=1 cannot be read"):
        list(dataset(folder, max_bad_samples=1).micro_batches(order(), 0, 4))
    assert capfd.readouterr().err.count("left out") == 1


@pytest.mark.parametrize(("count", "samples_per_shard"), [(2, 1), (7, 7), (7, 3), (13, 5)])
def test_few_and_prime_numbers_of_samples(source: Path, tmp_path: Path, count: int, samples_per_shard: int) -> None:
    """Fewer shards than ranks, one sample, a prime number: each image once per epoch, on any number of ranks."""
    write_shards(source, tmp_path, split=str((23 - count) / 23), samples_per_shard=samples_per_shard, workers=1)
    faces = dataset(tmp_path / "train")
    assert len(faces) == count
    whole = Order(count=count, seed=1, global_batch_size=16, micro_batch_size=2)
    keys = []
    for step in range(2 * count):
        for world in (1, 2, 4, 8)[step % 4 :][:1]:  # another number of ranks for every step: a restart
            for rank in range(world):
                (batch,) = faces.micro_batches(replace(whole, rank=rank, world_size=world), step, step + 1)
                keys += [key for micro in batch for key in micro.keys]
    expected = [faces.reader.key(i) for step in range(2 * count) for i in whole.indices(step)]
    assert keys == expected
    for epoch in range(len(keys) // count):
        assert len(set(keys[epoch * count : (epoch + 1) * count])) == count
