"""Whatever happens while shards are written, running it again ends in the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import COUNT, REPOSITORY, hashes

from pipeline.common.errors import UserError
from pipeline.data.shards import array_jobs as parts
from pipeline.data.shards import packing, writing
from pipeline.data.shards.format import index_path, load_manifest
from pipeline.data.shards.writing import write_shards


def test_rerun_touches_nothing(source: Path, folder: Path) -> None:
    out = folder.parent
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.rglob("*") if path.is_file()}
    summary = write_shards(source, out, split="0.2", samples_per_shard=5, workers=2)
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.rglob("*") if path.is_file()}
    assert before == after and summary.written == 0 and summary.samples == COUNT


def test_rerun_replaces_what_is_missing_or_cut(source: Path, folder: Path) -> None:
    out, before = folder.parent, hashes(folder.parent)
    (folder / "shard-000001.index.json").unlink()
    (folder / "shard-000002.tar").write_bytes(b"cut")
    (folder / "shard-000003.index.json").write_text("{}")
    (folder / "manifest.json").unlink()
    (folder / ".shard-000003-abc.tmp.tar").write_bytes(b"left by a kill")
    with pytest.raises(UserError, match="has not finished"):
        load_manifest(folder)
    summary = write_shards(source, out, split="0.2", samples_per_shard=5, workers=2)
    assert summary.written == 3 and hashes(out) == before


CHILD = """
import signal, sys, time
from pathlib import Path
from pipeline.data import packing
from pipeline.data.writing import write_shards
from pipeline.errors import Interrupted
def interrupt(number, frame):
    raise Interrupted(number)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, interrupt)
encode = packing._encode
def slow(*arguments):
    time.sleep(0.02)
    return encode(*arguments)
packing._encode = slow
try:
    write_shards(Path(sys.argv[1]), Path(sys.argv[2]), split="0.2", samples_per_shard=3, workers=int(sys.argv[3]))
except KeyboardInterrupt:
    sys.exit(130)
except Interrupted as stop:
    sys.exit(stop.exit_code)
"""


def start_child(source: Path, out: Path, workers: int = 2) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, str(source), str(out), str(workers)]
    return subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.PIPE, text=True)


def wait_for(condition: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_kill_at_any_moment_then_rerun(source: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    write_shards(source, expected, split="0.2", samples_per_shard=3, workers=1)
    out = tmp_path / "out"
    chance = random.Random(0)
    left = []
    for _ in range(4):
        child = start_child(source, out)
        wait_for(lambda: next(out.glob("*/.shard-*"), None) or child.poll() is not None)  # noqa: B023 (called at once)
        time.sleep(chance.uniform(0, 0.06))
        child.kill()  # the parent alone: its workers must notice
        child.communicate(timeout=20)
        wait_for(lambda pid=child.pid: group_is_gone(pid))
        left += out.glob("*/.shard-*")
    assert left, "a kill should have left a temporary file"
    write_shards(source, out, split="0.2", samples_per_shard=3, workers=2)
    assert hashes(out) == hashes(expected)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_stops_at_once_and_leaves_nothing_half_written(
    source: Path, tmp_path: Path, number: signal.Signals, code: int, workers: int
) -> None:
    out = tmp_path / "out"
    child = start_child(source, out, workers)
    wait_for(lambda: next(out.glob("*/.shard-*"), None))
    os.killpg(child.pid, number)  # as a terminal and SLURM do: to the workers too
    _, errors = child.communicate(timeout=10)
    assert child.returncode == code and errors == ""
    assert group_is_gone(child.pid)
    assert not list(out.glob("*/.*")) and not list(out.glob("*/manifest.json"))
    assert not write_shards(source, out, split="0.2", samples_per_shard=3, workers=1).rejected


def test_second_writer_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LOCK_PATIENCE_SECONDS", 0.0)
    child = start_child(source, tmp_path / "out")
    wait_for(lambda: next((tmp_path / "out").glob("*/.shard-*"), None))
    with pytest.raises(UserError, match="another process"):
        write_shards(source, tmp_path / "out", split="0.2", samples_per_shard=3)
    child.communicate(timeout=30)
    assert child.returncode == 0


class full_disk:
    """`replacing`, on a device that is full."""

    def __init__(self, path: Path, *, flush: bool) -> None:
        pass

    def __enter__(self) -> Path:
        return Path("/dev/full")

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("again", [False, True], ids=["at once", "after a kill before the flush"])
def test_on_disk_before_the_manifest(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    flushed: list[Path] = []
    if again:
        write_shards(source, tmp_path, split="0.2", samples_per_shard=10, workers=1)
        (tmp_path / "train" / "manifest.json").unlink()
        (tmp_path / "train" / "shard-000001.tar").write_bytes(b"cut")  # its index is whole

    def fsync(path: Path) -> None:
        assert path.suffix != ".tar" or not index_path(path).exists(), "an index says that its tar is on the disk"
        flushed.append(path)

    monkeypatch.setattr(packing, "fsync", fsync)
    monkeypatch.setattr(packing, "write_manifest", lambda folder, manifest: flushed.append(folder / "manifest.json"))
    monkeypatch.setattr(writing, "write_manifest", packing.write_manifest)
    write_shards(source, tmp_path, split="0.2", samples_per_shard=10, workers=1)
    manifest = flushed.index(tmp_path / "train" / "manifest.json")
    indexes = set(tmp_path.glob("*/*.index.json"))
    assert len(indexes) > 2
    assert {*indexes, tmp_path / "train", tmp_path / "test"} <= set(flushed[:manifest])
    tars = (
        {tmp_path / "train" / "shard-000001.tar"}
        if again
        else {path.with_suffix("").with_suffix(".tar") for path in indexes}
    )
    assert {path for path in flushed if path.suffix == ".tar"} == tars


def test_full_disk_and_read_only(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(packing, "replacing", full_disk)
    with pytest.raises(UserError, match=r"shard-000000\.tar: No space left on device"):
        write_shards(source, tmp_path / "out", split="0.2", workers=1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        write_shards(source, tmp_path / "file" / "out", split="0.2")
