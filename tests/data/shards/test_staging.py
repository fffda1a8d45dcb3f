"""Staging: what arrives is what the manifest says, or nothing; interrupted, repeated and by several at once."""

import fcntl
import json
import multiprocessing
import shutil
import signal
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from making import hashes
from running import finish, gone, start, wait_for

from pipeline.common.errors import UserError
from pipeline.common.files import sha256
from pipeline.data.shards import staging
from pipeline.data.shards.format import MANIFEST
from pipeline.data.shards.reader import ShardReader
from pipeline.data.shards.staging import StageSummary, stage
from pipeline.data.shards.verifying import verify


@pytest.fixture
def shards(folder: Path) -> Path:
    """train/ of 4 shards and test/ of 1."""
    return folder.parent


def layout(shards: Path) -> dict[str, str]:
    """What staging copies of a folder."""
    return {name: digest for name, digest in hashes(shards).items() if not name.endswith("plan.json")}


@pytest.mark.parametrize("url", ["{}", "file://{}", "pipe:cat {}/{{}}", "memory://staged"])
def test_every_split_arrives(shards: Path, tmp_path: Path, url: str) -> None:
    fsspec.filesystem("memory").put(str(shards), "/staged", recursive=True)
    summary = stage(url.format(shards), tmp_path / "local", workers=1 if url == "{}" else 2)
    assert layout(tmp_path / "local") == layout(shards)
    assert [(split.folder.name, split.samples, split.shards, split.copied) for split in summary.splits] == [
        ("train", 18, 4, 4),
        ("test", 5, 1, 1),
    ]
    assert summary.copied == 5 and json.loads(json.dumps(summary.as_dict()))["copied"] == 5
    assert summary.splits[0].content_hash == ShardReader(shards / "train").manifest.content_hash
    assert summary.splits[0].bytes == sum(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    for split in summary.splits:
        assert not verify(split.folder, workers=1).problems
    assert ShardReader(tmp_path / "local/train").read(17) == ShardReader(shards / "train").read(17)


def test_one_split(shards: Path, tmp_path: Path) -> None:
    summary = stage(f"file://{shards}/train/", tmp_path / "local", workers=1)
    assert hashes(tmp_path / "local") == hashes(shards / "train")
    assert [split.folder for split in summary.splits] == [tmp_path / "local"]


def test_only_what_is_missing_or_damaged_is_copied(shards: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    stage(str(shards), local, workers=1)
    times = {path: path.stat().st_mtime_ns for path in local.rglob("shard-*")}
    assert stage(str(shards), local, workers=1).copied == 0
    assert {path: path.stat().st_mtime_ns for path in local.rglob("shard-*")} == times
    tar = local / "train/shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")  # of the right size
    (local / "train/shard-000002.index.json").unlink()
    (local / "train/shard-000003.tar").write_bytes(b"")
    (local / "test" / MANIFEST).write_text("{")
    assert [split.copied for split in stage(str(shards), local, workers=1).splits] == [3, 0]
    assert layout(local) == layout(shards)


def test_a_damaged_source_is_named(shards: Path, tmp_path: Path) -> None:
    damaged = shards / "train/shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError) as caught:
        stage(str(shards), tmp_path / "local", workers=2)
    assert str(caught.value).startswith(f"{damaged}: its SHA-256 is not the manifest's")
    assert "\n" not in str(caught.value)
    names = set(hashes(tmp_path / "local"))
    assert not {name for name in names if "shard-000001.tar" in name or MANIFEST in name or ".tmp" in name}


def test_continues_where_it_stopped(shards: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    cut = f"pipe:case {{}} in *.tar) exit 3;; *) cat {shards}/train/{{}};; esac"
    with pytest.raises(UserError, match="cannot be read: its command ended with code 3"):
        stage(cut, local, workers=1)
    assert list(hashes(local)) == ["shard-000000.index.json"]
    shutil.copy(shards / "train/shard-000002.tar", local)
    shutil.copy(shards / "train/shard-000002.index.json", local)
    left = local / ".shard-000001-0123abcd.tmp.tar"  # of a run that was killed
    left.write_bytes(b"begun")
    assert stage(str(shards / "train"), local, workers=1).copied == 3
    assert hashes(local) == hashes(shards / "train")


def test_no_more_is_stored_than_the_manifest_says(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source never ends."""
    local = tmp_path / "local"
    for largest in ("MAX_JSON_BYTES", "MAX_MANIFEST_BYTES"):
        monkeypatch.setattr(staging, largest, 5_000_000)
    for pattern, limit in {"*.tar": r"\d\d,\d{3}", "*.index.json": "5,000,000"}.items():
        source = f"pipe:case {{}} in {pattern}) yes;; *) cat {shards}/train/{{}};; esac"
        with pytest.raises(
            UserError, match=f"shard-000000.*: more than the {limit} bytes that it may have; run `verify`"
        ):
            stage(source, local, workers=1)
        assert set(hashes(local)) <= {"shard-000000.index.json"}
        shutil.rmtree(local)
    with pytest.raises(UserError, match=r"manifest.json: more than the 5,000,000 bytes"):
        stage("pipe:yes {}", local)


@pytest.mark.parametrize("source", ["{}/none", "pipe:cat {}/none/{{}}", "memory://none"])
def test_no_shards_there(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match=r"^\S.*: no manifest.json in it, in train/, validation/ or test/ \(.*\)$"):
        stage(source.format(tmp_path), tmp_path / "local")


def test_a_source_that_fails_is_not_an_empty_one(tmp_path: Path) -> None:
    cases = {
        "pipe:exit 3 {}": "its command ended with code 3$",
        "pipe:cat /shards": r"write \{\} where",
        "ftp9://there": "ftp9:// is not known; give a path",
    }
    for source, message in cases.items():
        with pytest.raises(UserError, match=message):
            stage(source, tmp_path / "local")
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 9}', "no JSON", "leads out"])
def test_a_manifest_that_is_none(shards: Path, tmp_path: Path, content: str) -> None:
    path = shards / "train" / MANIFEST
    leads_out = path.read_text().replace('"shard-000001.tar"', '"../shard-000001.tar"')
    path.write_text(leads_out if content == "leads out" else content)
    with pytest.raises(UserError, match=r"train/manifest.json: damaged, or not a manifest"):
        stage(str(shards), tmp_path / "local")


def test_no_room(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(path.stat().st_size for path in shards.rglob("*.tar"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    with pytest.raises(UserError, match=r"local: \d+\.\d\d GiB needed, \d+\.\d\d GiB free; make room"):
        stage(str(shards), tmp_path / "local")
    assert hashes(tmp_path / "local") == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size))
    assert stage(str(shards), tmp_path / "local", workers=1).copied == 5
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert stage(str(shards), tmp_path / "local", workers=1).copied == 0


def test_other_shards_are_left_alone(shards: Path, tmp_path: Path) -> None:
    before = hashes(shards)
    with pytest.raises(UserError, match=r"train: holds other shards than .*test/; choose another folder"):
        stage(str(shards / "test"), shards / "train", workers=1)
    assert hashes(shards) == before
    local = tmp_path / "local"
    local.mkdir()
    (local / "mine.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"local: holds mine.tar, which .*train/ has not"):
        stage(str(shards / "train"), local, workers=1)
    assert list(hashes(local)) == ["mine.tar"]


def call(arrived: Barrier, source: str, destination: Path, results: "Queue[tuple[StageSummary, int]]") -> None:
    """Stage as soon as all have arrived at the lock; put the summary, and how many files were read again."""
    checked: list[Path] = []

    def counted(path: Path) -> str:
        checked.append(path)
        return sha256(path)

    def together(descriptor: int, operation: int) -> None:
        arrived.wait()
        lock(descriptor, operation)

    lock = fcntl.flock
    with mock.patch.object(staging, "sha256", counted), mock.patch.object(fcntl, "flock", together):
        results.put((stage(source, destination, workers=1), len(checked)))


def test_eight_at_once(shards: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: Queue[tuple[StageSummary, int]] = context.Queue()
    arguments = (context.Barrier(8), str(shards), tmp_path / "local", results)
    processes = [context.Process(target=call, args=arguments) for _ in range(8)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(summary.copied for summary, _ in outcomes) == [0] * 7 + [5]
    assert sum(checked for _, checked in outcomes) == 0  # those that waited trust the one that copied
    assert layout(tmp_path / "local") == layout(shards)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_stalls_does_not_keep_a_signal_waiting(folder: Path, tmp_path: Path, workers: int) -> None:
    command = f"case {{}} in *.tar) echo $$ >> {tmp_path}/pids; sleep 100;; *) cat {folder}/{{}};; esac"
    process = start("stage", f"pipe:{command}", tmp_path / "local", "--workers", workers)
    pids = tmp_path / "pids"
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == workers, process)
    process.send_signal(signal.SIGTERM)
    finish(process, 20).assert_one_line("stopped by SIGTERM; the same command resumes", code=75)
    assert all(gone(int(pid)) for pid in pids.read_text().split())
