"""Decoded images kept: the same batches as without, built once, whole or not there."""

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from running import assert_equal_bits, file_size_limit, latentfuse, make_shards, tiny_arguments

from pipeline.common.errors import UserError
from pipeline.config.schema import DataConfig
from pipeline.data.loading import cache
from pipeline.data.loading.loader import FaceImages, MicroBatch
from pipeline.data.loading.order import Order
from pipeline.data.shards.reader import ShardReader
from pipeline.data.shards.writing import write_shards

Kind = Literal["disk", "device"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", 5)
    monkeypatch.setattr(cache, "AT_A_TIME", 4)


def opened(shards: Path, **options: Any) -> FaceImages:
    return FaceImages(shards, DataConfig(**{"image_size": 32, "workers": 0, **options}))


def held(shards: Path, kind: Kind, folder: Path, **options: Any) -> FaceImages:
    faces = opened(shards, **options)
    cache.hold(faces, kind, folder, CPU)
    assert faces.pixels is not None and faces.pixels.shape == (len(faces), 3, 32, 32)
    return faces


def built(folder: Path) -> tuple[Path, Path]:
    """The pixels and the sidecar; nothing else but the lock is there."""
    names = {path.suffix: path for path in folder.iterdir()}
    assert set(names) == {".u8", ".json", ".lock"} and len(list(folder.iterdir())) == 3
    return names[".u8"], names[".json"]


def assert_same(one: list[list[MicroBatch]], other: list[list[MicroBatch]]) -> None:
    for a, b in zip(one, other, strict=True):
        assert [micro.keys for micro in a] == [micro.keys for micro in b]
        assert [micro.place for micro in a] == [micro.place for micro in b]
        assert np.array_equal([micro.flips for micro in a], [micro.flips for micro in b])
        assert all(torch.equal(x.images, y.images) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", ["disk", "device"])
@pytest.mark.parametrize("count", [7, 13])
def test_the_same_batches_as_without(source: Path, tmp_path: Path, kind: Kind, count: int) -> None:
    write_shards(source, tmp_path, split=str((23 - count) / 23), samples_per_shard=5, workers=1)
    plain, kept = opened(tmp_path / "train"), held(tmp_path / "train", kind, tmp_path / "cache", workers=2)
    for seed, first, rank, world in ((0, 0, 0, 1), (3, 17, 1, 2), (2**32 - 1, 10**6, 3, 4)):
        order = Order(count, seed, global_batch_size=24, micro_batch_size=3, rank=rank, world_size=world)
        batches = list(kept.micro_batches(order, first, first + 3))
        assert_same(batches, list(plain.micro_batches(order, first, first + 3)))
        assert not multiprocessing.active_children()
    upright = opened(tmp_path / "train", horizontal_flip=False)
    upright.pixels = kept.pixels
    assert all(
        torch.equal(m.images, kept.pixels[order.indices(0)[m.place]]) for m in next(upright.micro_batches(order, 0, 1))
    )  # type: ignore[index]


def test_large_batches(folder: Path, tmp_path: Path) -> None:
    order = Order(18, 0, global_batch_size=50, micro_batch_size=50)
    one, other = held(folder, "disk", tmp_path / "cache"), opened(folder)
    assert_same(list(one.micro_batches(order, 0, 2)), list(other.micro_batches(order, 0, 2)))


def test_the_device_cache_is_gathered_from(folder: Path, tmp_path: Path) -> None:
    from pipeline.data.loading import loader

    faces = held(folder, "device", tmp_path / "cache")
    assert faces.pixels is not None and not (tmp_path / "cache").exists()
    indices = np.array([4, 4, 17, 0])
    (here,) = loader._gathered(faces.pixels, iter([indices]))
    assert torch.equal(here.images, faces.pixels[indices])


def read_only(path: Path, value: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system", str(path))


def test_nodes_of_other_processors_have_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(folder, "disk", tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NO AVX")
        held(folder, "disk", tmp_path / "cache")
    assert {path.name.split("-", 2)[2] for path in (tmp_path / "cache").glob("*.u8")} >= {"no-avx.u8"}
    monkeypatch.setattr(cache, "_build", pytest.fail)
    held(folder, "disk", tmp_path / "cache")


def test_a_finished_cache_is_only_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = held(folder, "disk", tmp_path / "cache")
    pixels, _ = built(tmp_path / "cache")
    processor = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")
    assert pixels.name == f"{first.content_hash[:16]}-32px-{processor}.u8"
    assert pixels.stat().st_size == 18 * 3 * 32 * 32
    before = pixels.stat()
    monkeypatch.setattr(cache, "_build", pytest.fail)
    monkeypatch.setattr(cache, "_decode", pytest.fail)
    assert torch.equal(held(folder, "disk", tmp_path / "cache").pixels, first.pixels)  # type: ignore[arg-type]
    assert torch.equal(held(folder, "device", tmp_path / "cache").pixels, first.pixels)  # type: ignore[arg-type]
    assert pixels.stat() == before or pixels.stat().st_mtime_ns == before.st_mtime_ns
    os.utime(pixels)  # a copy: every block is compared, once
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.common.files.write_json", read_only)
        held(folder, "disk", tmp_path / "cache")
    held(folder, "disk", tmp_path / "cache")
    monkeypatch.setattr(cache, "_is_whole", pytest.fail)
    held(folder, "disk", tmp_path / "cache")


def test_other_pixels_are_another_file(folder: Path, tmp_path: Path) -> None:
    held(folder, "disk", tmp_path / "cache")
    faces = opened(folder, crop=30)
    cache.hold(faces, "disk", tmp_path / "cache", CPU)
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 2
    assert torch.equal(faces.pixels[3], opened(folder, crop=30)[3].image)  # type: ignore[index, union-attr]


def cut(pixels: Path, sidecar: Path) -> None:
    os.truncate(pixels, 5000)


def flip_a_bit(pixels: Path, sidecar: Path) -> None:
    content = bytearray(pixels.read_bytes())
    content[20_000] ^= 1
    pixels.write_bytes(content)


def lose_the_sidecar(pixels: Path, sidecar: Path) -> None:
    sidecar.unlink()


def garble_the_sidecar(pixels: Path, sidecar: Path) -> None:
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "crc32": [1]}))


def take_another_decoder(pixels: Path, sidecar: Path) -> None:
    value = json.loads(sidecar.read_text())
    value["identity"]["decoder"] = "torch 1.0"
    sidecar.write_text(json.dumps(value))


@pytest.mark.parametrize("damage", [cut, flip_a_bit, lose_the_sidecar, garble_the_sidecar, take_another_decoder])
def test_what_is_not_whole_is_built_again(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: Callable[[Path, Path], None]
) -> None:
    whole = held(folder, "disk", tmp_path / "cache").pixels
    assert whole is not None
    whole = whole.clone()
    damage(*built(tmp_path / "cache"))
    capfd.readouterr()
    assert torch.equal(held(folder, "device", tmp_path / "cache").pixels, whole)  # type: ignore[arg-type]
    assert ("u8: damaged; every image is decoded again" in capfd.readouterr().err) == (damage in (cut, flip_a_bit))
    assert torch.equal(held(folder, "disk", tmp_path / "cache").pixels, whole)  # type: ignore[arg-type]
    built(tmp_path / "cache")


def damage_shard(folder: Path, index: int) -> Callable[[], int]:
    """Make a sample unreadable; returns what mends it."""
    sample = ShardReader(folder).index.locate(index)
    tar = folder / sample.shard
    whole = tar.read_bytes()
    tar.write_bytes(whole[: sample.offset + 50] + b"\0" * 8 + whole[sample.offset + 58 :])
    return lambda: tar.write_bytes(whole)


@pytest.mark.parametrize("kind", ["disk", "device"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(folder: Path, tmp_path: Path, kind: Kind, workers: int) -> None:
    damage_shard(folder, 7)
    with pytest.raises(UserError, match=r"shard-000001\.tar: sample 000008: damaged"):
        held(folder, kind, tmp_path / "cache", workers=workers)
    assert not list(tmp_path.glob("cache/*.u8")) and not list(tmp_path.glob("cache/.*"))


@pytest.mark.parametrize("kind", ["disk", "device"])
def test_as_many_as_allowed_are_replaced(
    folder: Path, tmp_path: Path, kind: Kind, capfd: pytest.CaptureFixture[str]
) -> None:
    mend = damage_shard(folder, 7)
    damage_shard(folder, 17)
    order = Order(18, 1, global_batch_size=12, micro_batch_size=3)
    plain = list(opened(folder, max_bad_samples=2).micro_batches(order, 0, 4))
    capfd.readouterr()
    for _ in range(2):  # built, then found
        assert_same(list(held(folder, kind, tmp_path / "cache", max_bad_samples=2).micro_batches(order, 0, 4)), plain)
        told = capfd.readouterr().err
        assert "left out (2 of 2 allowed)" in told and told.count("sample 000008: damaged") == 1
    with pytest.raises(UserError, match=r"more than data.max_bad_samples=1 cannot be read"):
        held(folder, kind, tmp_path / "cache", max_bad_samples=1)
    with pytest.raises(UserError, match=r"sample 0000.*damaged"):
        held(folder, kind, tmp_path / "cache")
    mend()
    again = held(folder, kind, tmp_path / "cache", max_bad_samples=2)
    assert torch.equal(again.pixels[7], opened(folder)[7].image)  # type: ignore[index, union-attr]


def hold_in_child(shards: Path, folder: Path, mark: Path, slowly: bool) -> None:
    if slowly:
        write_block = cache._write_block

        def slow(shared: Any, first: int) -> Any:
            (mark / "begun").touch()
            time.sleep(1 if first else 0)
            return write_block(shared, first)

        cache._write_block = slow
    faces = held(shards, "disk", folder)
    assert faces.pixels is not None
    (mark / f"{os.getpid()}.sum").write_text(str(int(faces.pixels.sum())))


def test_many_processes_build_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (folder, tmp_path / "cache", tmp_path, False)
    processes = [context.Process(target=hold_in_child, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len({path.read_text() for path in tmp_path.glob("*.sum")}) == 1 and len(list(tmp_path.glob("*.sum"))) == 4
    built(tmp_path / "cache")


def test_the_builder_is_killed(folder: Path, tmp_path: Path) -> None:
    """A process that waits for it takes over, and what the dead one left is not taken for whole."""
    context = multiprocessing.get_context("fork")
    first = context.Process(target=hold_in_child, args=(folder, tmp_path / "cache", tmp_path, True))
    first.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = context.Process(target=hold_in_child, args=(folder, tmp_path / "cache", tmp_path, False))
    second.start()
    time.sleep(0.2)
    assert second.is_alive() and not list(tmp_path.glob("*.sum"))
    os.kill(first.pid or 0, signal.SIGKILL)
    second.join(60)
    assert second.exitcode == 0
    pixels, _ = built(tmp_path / "cache")
    assert np.fromfile(pixels, np.uint8).sum() == int(held(folder, "device", tmp_path / "none").pixels.sum())  # type: ignore[union-attr]


def test_no_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r"data.cache=disk needs .* GiB are free; make room, or set data.cache_dir"):
            held(folder, "disk", tmp_path / "cache")
    with file_size_limit(40_000), pytest.raises(UserError, match="too large"):
        held(folder, "disk", tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*.u8")) and not list(tmp_path.glob("cache/.*"))
    monkeypatch.setattr(cache, "_free", lambda device: 55_295)
    with pytest.raises(UserError, match=r"data.cache: device needs .* cpu for 18 images.*\(55295 bytes\) are free"):
        held(folder, "device", tmp_path / "cache")


def test_training_is_the_same_with_each(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    for kind in ("none", "disk", "device"):
        options = tiny_arguments(tmp_path / kind, shards, f"data.cache={kind}", "training.pretrain_steps=3")
        result = latentfuse("pretrain", *options)
        assert result.code == 0, result
        last = "pretrain/checkpoints/step-00000003"
        assert_equal_bits(tmp_path / "none" / last, tmp_path / kind / last)
    assert list((tmp_path / "disk" / "cache").glob("*.u8")) and not (tmp_path / "device" / "cache").exists()
    more = ("training.pretrain_steps=4", "tracking.checkpoint_every=4")
    resumed = latentfuse("pretrain", *tiny_arguments(tmp_path / "none", shards, "data.cache=disk", *more))
    assert resumed.code == 0 and "resumed" in resumed.out
    refused = latentfuse("pretrain", *tiny_arguments(tmp_path / "x", shards, "data.cache=disk", "data.stream=a.tar"))
    refused.assert_one_line("data.cache: disk needs shards at hand")
