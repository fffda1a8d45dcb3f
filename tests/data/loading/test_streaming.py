"""Streaming: the images of the tars, for any number of ranks, workers and shards; and what is wrong, by URL and key."""

import hashlib
import io
import multiprocessing
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from making import jpeg, member_offsets
from running import gone, wait_for
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.config.schema import DataConfig
from pipeline.data import images, remote
from pipeline.data.loading import streaming as stream
from pipeline.data.loading import workers
from pipeline.data.loading.loader import FaceImages, MicroBatch
from pipeline.data.loading.order import Order
from pipeline.data.loading.streaming import StreamedFaces
from pipeline.data.shards import tar as tar_format

BRACES = "shard-{000000..000003}.tar"
"""The shards of `folder`."""
ORDER = Order(20, 0, 4, 2)


def faces(urls: object, workers: int = 0, flip: bool = False, max_bad_samples: int = 0) -> StreamedFaces:
    config = DataConfig(image_size=32, workers=workers, horizontal_flip=flip, max_bad_samples=max_bad_samples)
    return StreamedFaces(str(urls), config, seed=5)


def order(rank: int = 0, world: int = 1) -> Order:
    return Order(count=18, seed=1, global_batch_size=12, micro_batch_size=3, rank=rank, world_size=world)


def steps(source: StreamedFaces, first: int = 0, last: int = 2, rank: int = 0, world: int = 1) -> list[MicroBatch]:
    return [micro for step in source.micro_batches(order(rank, world), first, last) for micro in step]


def pictures(batches: list[MicroBatch]) -> list[bytes]:
    """One for each image, to compare."""
    return [image.numpy().tobytes() for micro in batches for image in micro.images]


def in_the_shards(folder: Path) -> list[Tensor]:
    """What random access reads."""
    whole = FaceImages(folder, DataConfig(image_size=32))
    return list(images.to_uint8(whole.load(list(range(len(whole))))))


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def refused(source: StreamedFaces) -> str:
    """The line that ends a stream; no worker outlives it."""
    with pytest.raises(UserError) as caught:
        steps(source, 0, 50)
    assert not multiprocessing.active_children()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_micro_batches(folder: Path, workers: int) -> None:
    known = {image.numpy().tobytes() for image in in_the_shards(folder)}
    source = faces(folder / BRACES, workers)
    batches = list(source.micro_batches(order(), 3, 9))
    assert len(batches) == 6 and not multiprocessing.active_children()
    for step in batches:
        assert [micro.span for micro in step] == order().slices()
        for micro in step:
            assert micro.images.shape == (3, 3, 32, 32) and micro.images.dtype == torch.uint8
            assert micro.keys == ()
    seen = pictures([micro for step in batches for micro in step])
    assert set(seen) <= known and len(set(seen)) > 12
    again = pictures(steps(source, 3, 9))
    assert seen == again and seen != pictures(steps(source, 4, 10))
    assert list(source.micro_batches(order(), 9, 9)) == []


def test_seed_and_workers_choose_the_images(folder: Path) -> None:
    here = pictures(steps(faces(folder / BRACES)))
    assert here == pictures(steps(faces(folder / BRACES, workers=1)))
    other = StreamedFaces(str(folder / BRACES), DataConfig(image_size=32, workers=0, horizontal_flip=False), seed=6)
    assert here != pictures(steps(other))


def test_shards_are_mixed_and_all_of_them_drawn(folder: Path) -> None:
    """Nine samples in a row are not those of one shard, which has five."""
    known = [image.numpy().tobytes() for image in in_the_shards(folder)]
    places = [known.index(seen) for seen in pictures(steps(faces(folder / BRACES), 0, 10))]
    assert set(places) == set(range(18))
    assert len({place // 5 for place in places[:9]}) > 1
    assert sorted(places[:18]) != places[:18]


def test_flips_follow_the_order(folder: Path) -> None:
    plain = list(faces(folder / BRACES).micro_batches(order(1, 2), 0, 3))
    mirrored = list(faces(folder / BRACES, flip=True).micro_batches(order(1, 2), 0, 3))
    seen = set()
    for step, (before, after) in enumerate(zip(plain, mirrored, strict=True)):
        for one, other in zip(before, after, strict=True):
            flips = order().flips(step)[one.span]
            assert torch.equal(one.images, other.images), "training mirrors them"
            assert other.flips is not None and np.array_equal(other.flips, flips)
            assert one.flips is not None and not one.flips.any()
            seen |= set(flips.tolist())
    assert seen == {True, False}


@pytest.mark.parametrize("samples", [1, 4])
def test_any_number_of_ranks(tmp_path: Path, samples: int) -> None:
    """One shard, of one sample even, for four ranks with two workers each."""
    url = pack(tmp_path / "a.tar", {f"{number}.jpg": jpeg(number) for number in range(samples)})
    streams = [steps(faces(url, workers=2), 0, 6, rank, 4) for rank in range(4)]
    assert [len(micros) for micros in streams] == [6, 6, 6, 6]
    assert [micros[0].span for micros in streams] == order().slices()
    assert (len({tuple(pictures(micros)) for micros in streams}) == 4) == (samples > 1)


def test_where_tars_may_be(folder: Path) -> None:
    fsspec.filesystem("memory").put(str(folder), "/streamed", recursive=True)
    known = in_the_shards(folder)
    for urls in (f"file://{folder}/{BRACES}", f"pipe:cat {folder}/{BRACES}", f"memory://streamed/{BRACES}"):
        source = faces(urls, workers=1)
        first = images.to_uint8(source.calibration(ORDER, 20))
        assert torch.equal(first, torch.stack([*known, *known[:2]]))  # from the start again after the last
        assert pictures(steps(source)) == pictures(steps(faces(folder / BRACES, workers=1)))


def test_calibration_is_always_the_same(folder: Path) -> None:
    source = faces(folder / BRACES, workers=2, flip=True)
    first = source.calibration(ORDER, 7)
    assert first.dtype == torch.float32 and first.shape == (7, 3, 32, 32)
    assert first.min() >= -1 and first.max() <= 1
    assert torch.equal(first, source.calibration(ORDER, 7))
    assert torch.equal(first, FaceImages(folder, source.config).load(list(range(7))))


def test_identity_is_the_list_of_urls(folder: Path) -> None:
    text = "".join(f"{folder}/shard-00000{number}.tar\n" for number in range(4))
    assert faces(folder / BRACES).content_hash == hashlib.sha256(text.encode()).hexdigest()
    assert faces(f"{folder}/a.tar::{folder}/b.tar").urls == [f"{folder}/a.tar", f"{folder}/b.tar"]
    for urls in ("", "a.tar::", "{a,b", "${NOT_SET}/a.tar"):
        with pytest.raises(UserError):
            faces(urls)


@pytest.mark.parametrize("braces", ["{0..99999999}", "{0..9999}{0..9999}", "{a{0..9999}{0..9999},b}", "{a..z}" * 6])
def test_too_many_tars_are_refused_unwritten(braces: str) -> None:
    with pytest.raises(UserError, match=r": not a list of tars: more than 1,000,000$"):
        faces(f"shard-{braces}.tar")
    assert len(faces("{a-{0000..4999},b-{0000..4999}}.tar").urls) == 10_000
    with pytest.raises(UserError, match="recursion"):
        faces("{" * 2000 + "}" * 2000)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_is_no_picture_is_named(tmp_path: Path, workers: int) -> None:
    good = {f"{number}.jpg": jpeg(number) for number in range(3)}
    bad = pack(tmp_path / "bad.tar", good | {"x/7.jpg": jpeg(7)[:-300]})
    expected = f"{bad}: sample x/7: not a readable image: Image is incomplete or truncated"
    assert refused(faces(bad, workers)) == expected
    none = pack(tmp_path / "none.tar", good | {"8.json": b"{}"})
    assert refused(faces(none, workers)) == f"{none}: sample 8: no .jpg, .jpeg, .png or .webp; leave it out of the tar"
    with pytest.raises(UserError, match="sample x/7"):
        faces(bad, workers).calibration(ORDER, 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_some_bad_samples_may_be_allowed(tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    good = {f"{number}.jpg": jpeg(number) for number in range(5)}
    url = pack(tmp_path / "a.tar", good | {"bad.jpg": b"\xff\xd8"})
    batches = steps(faces(url, workers, max_bad_samples=1), 0, 5)
    assert len(batches) == 20 and len(set(pictures(batches))) == 5
    first = faces(url, workers, max_bad_samples=1).calibration(ORDER, 7)
    assert torch.equal(first[5:], first[:2])
    assert capfd.readouterr().err.count("left out") == 1  # however often it is drawn
    worse = pack(tmp_path / "b.tar", good | {"bad.jpg": b"\xff\xd8", "worse.jpg": b"\xff\xd8"})
    assert "more than data.max_bad_samples=1" in refused(faces(worse, workers, max_bad_samples=1))
    none = pack(tmp_path / "c.tar", {"bad.jpg": b"\xff\xd8"})
    assert "c.tar: sample bad: not a readable image" in refused(faces(none, workers, max_bad_samples=1))
    with pytest.raises(UserError, match=r"c\.tar: sample bad: not a readable image"):
        faces(none, workers, max_bad_samples=1).calibration(ORDER, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tar_that_is_cut_or_none(folder: Path, tmp_path: Path, workers: int) -> None:
    tar = folder / "shard-000000.tar"
    whole, members = tar.read_bytes(), member_offsets(tar)
    inside = (members[2].offset_data + 100, members[3].offset_data + 5, members[4].offset + 100)
    for end in (*inside, members[4].offset):  # and between two
        tar.write_bytes(whole[:end])
        assert refused(faces(tar, workers)).startswith(f"{tar}: cut short, damaged, or no WebDataset tar (")
    for content in (b"", b"<html>" * 500, pack(tmp_path / "empty.tar", {}).read_bytes()):
        tar.write_bytes(content)
        assert refused(faces(tar, workers)).startswith(f"{tar}: ")
    many = pack(tmp_path / "many.tar", {f"{number}.jpg": jpeg(number) for number in range(20)})
    damaged = bytearray(many.read_bytes())
    damaged[member_offsets(many)[3].offset] ^= 1
    many.write_bytes(damaged)
    assert "(it does not end as tars do)" in refused(faces(many, workers))
    assert "(it does not end as tars do)" in refused(faces("pipe:cat /dev/zero", workers))
    twice = pack(tmp_path / "twice.tar", {"a.jpg": jpeg(1), "a.JPG": jpeg(2)})
    assert f"{twice}: cut short, damaged, or no WebDataset tar (a.JPG: duplicate" in refused(faces(twice, workers))
    with tarfile.open(tmp_path / "sound.tar.gz", "w:gz") as packed:
        packed.add(folder / "shard-000001.tar", "a.png")  # no picture, but a sample
    assert "sound.tar.gz: sample a: not a readable image" in refused(faces(tmp_path / "sound.tar.gz", workers))
    assert refused(faces(folder, workers)) == f"{folder}: cannot be read: Is a directory"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_download_that_fails_is_named(folder: Path, workers: int) -> None:
    tar = folder / "shard-000000.tar"
    reasons = {
        "memory://none.tar": "no such file",
        f"pipe:cat {tar}; echo gone >&2; exit 5": "gone",
        f"pipe:head -c 3000 {tar}; exit 5": "its command ended with code 5",
        f"{folder}/none.tar": "No such file or directory",
    }
    for url, reason in reasons.items():
        assert refused(faces(url, workers)) == f"{url}: cannot be read: {reason}"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_member_is_no_larger_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """What a header claims is refused before it is read, in an extended header, too."""
    monkeypatch.setattr(tar_format, "MAX_MEMBER_BYTES", 10_000)
    plain = tarfile.TarInfo("0.jpg")
    plain.size = 10_001
    extended = tarfile.TarInfo("0.jpg")
    extended.pax_headers = {"size": "100000000000000000000"}
    long = tarfile.TarInfo("0.jpg")
    long.pax_headers = {"comment": 20_000 * "x"}
    for member in (plain, extended, long):
        (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.PAX_FORMAT) + bytes(30_000))
        assert "10,000 are allowed); copy" in refused(faces(tmp_path / "a.tar", workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_stalls_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.3)
    url = f"pipe:head -c 3000 {folder}/shard-000000.tar; sleep 60"
    assert refused(faces(url, workers)) == f"{url}: cannot be read: too slow: less than 1 MiB came in 0.3 s"
    with pytest.raises(UserError, match="too slow"):
        faces(url).calibration(ORDER, 9)


def test_a_command_ends_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not keep it: workers are killed while they wait for what does not come."""
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(stream, "SHUFFLE_BUFFER", 2)
    # A whole block arrives; the last member belongs to the last picture.
    members = {f"{number}.jpg": jpeg(number) for number in range(8)} | {"7.bin": bytes(remote.BLOCK)}
    tar = pack(tmp_path / "a.tar", members)
    url = f"pipe:echo $$ > {tmp_path}/pid; cat {tar}; exec sleep 60"
    batches = faces(url, workers=1).micro_batches(Order(18, 1, 3, 3), 0, 100)
    next(batches)
    assert multiprocessing.active_children()
    began = time.monotonic()
    batches.close()
    assert not multiprocessing.active_children() and time.monotonic() - began < 5
    wait_for(lambda: gone(int((tmp_path / "pid").read_text())))


def test_too_little_shared_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = (5 * 2 + 2 * 4) * 3 * (3 * 32 * 32)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=needed))
    steps(faces(folder / BRACES, workers=2), 0, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    expected = "data.workers: 4 need 1 MiB in /dev/shm, 0 MiB are free; use fewer (0 need none)"
    assert refused(faces(folder / BRACES, workers=2)).startswith(expected)
    steps(faces(folder / BRACES), 0, 1)
