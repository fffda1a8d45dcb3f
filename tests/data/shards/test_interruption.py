"""Whatever happens while shards are written, running it again ends in the same bytes."""

import signal
import time
from pathlib import Path

import pytest
from forking import Started, start_command
from making import COUNT, hashes

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.data.shards import array_jobs
from pipeline.data.shards.format import load_manifest
from pipeline.data.shards.writing import write_shards
from pipeline.data.source.photographs import Source


def test_rerun_touches_nothing(source: Path, folder: Path) -> None:
    out = folder.parent
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.rglob("*.*")}
    summary = write_shards(source, out, split="0.2", samples_per_shard=5, workers=2)
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.rglob("*.*")}
    assert before == after and summary.written == 0 and summary.samples == COUNT


def test_rerun_replaces_what_is_missing_or_cut(source: Path, folder: Path) -> None:
    out, before = folder.parent, hashes(folder.parent)
    (folder / "shard-000001.index.json").unlink()
    (folder / "shard-000002.tar").write_bytes(b"cut")
    (folder / "shard-000003.index.json").write_text("{}")
    (folder / "manifest.json").unlink()
    (folder / ".shard-000003-abcdabcd.tmp.tar").write_bytes(b"left by a kill")
    with pytest.raises(UserError, match="has not finished"):
        load_manifest(folder)
    summary = write_shards(source, out, split="0.2", samples_per_shard=5, workers=2)
    assert summary.written == 3 and hashes(out) == before


def slowly() -> None:
    """For the command's process: every image takes a while to read."""
    read = Source.read

    def slow(*arguments: object) -> bytes:
        time.sleep(0.02)
        return read(*arguments)  # type: ignore[arg-type]

    Source.read = slow  # type: ignore[method-assign, assignment]


def begun(source: Path, out: Path, workers: int) -> Started:
    """`shard`, once it has begun to write."""
    options = ("--split", "0.2", "--samples-per-shard", 3, "--workers", workers)
    command = start_command(out.with_name("told"), "shard", source, out, *options, prepare=slowly)
    command.wait_for(lambda: next(out.glob("*/.shard-*"), None))
    return command


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_stops_at_once_and_leaves_nothing_half_written(
    source: Path, tmp_path: Path, number: signal.Signals, code: int, workers: int
) -> None:
    out = tmp_path / "out"
    command = begun(source, out, workers)
    command.signal_group(number)  # as a terminal and SLURM do: to the workers too
    command.finish(10).assert_one_line("stopped by", code=code)
    assert command.group_is_gone()
    assert not list(out.glob("*/.*")) and not list(out.glob("*/manifest.json"))
    assert not write_shards(source, out, split="0.2", samples_per_shard=3, workers=1).rejected


def test_second_writer_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_jobs, "LOCK_PATIENCE_SECONDS", 0.0)
    command = begun(source, tmp_path / "out", 2)
    with pytest.raises(UserError, match="another process"):
        write_shards(source, tmp_path / "out", split="0.2", samples_per_shard=3)
    assert command.finish(30).code == 0


def test_on_disk_before_the_manifest(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flushed and renamed in which order: each tar, then its index, then the manifest."""
    done: list[tuple[str, str]] = []
    flush, replace = files.fsync, Path.replace

    def fsync(path: Path) -> None:
        done.append(("flush", path.name))
        flush(path)

    def rename(path: Path, target: Path) -> Path:
        done.append(("rename", target.name))
        return replace(path, target)

    monkeypatch.setattr(files, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    write_shards(source, tmp_path, split="0.2", samples_per_shard=10, workers=1)
    shards = ["shard-000000.tar", "shard-000000.index.json", "shard-000001.tar", "shard-000001.index.json"]
    before = done[: done.index(("rename", "manifest.json"))]
    renames = [number for number, (what, _) in enumerate(before) if what == "rename"]
    assert [before[number][1] for number in renames][:4] == shards
    for number in renames:
        assert before[number - 1][0] == "flush", "the file, before it gets its name"
        assert before[number + 1] in (("flush", "train"), ("flush", "test")), "its folder, behind it"
