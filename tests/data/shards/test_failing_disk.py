"""The disk fails at any operation of `shard`: one line names the path, and running again is enough."""

import errno
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from making import hashes, jpegs

from pipeline.common.errors import UserError
from pipeline.data.shards.array_jobs import Part
from pipeline.data.shards.writing import write_shards


class FailingDisk:
    """Every operation that changes something below `folder` is counted; the `fatal`-th, or all (0), fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, number: int, fatal: int) -> None:
        self.folder, self.number, self.fatal, self.done = str(folder), number, fatal, 0
        self._open = io.open
        for name in ("mkdir", "replace", "link"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(io, "open", self.open)

    def fsync(self, descriptor: int) -> None:
        self.operation()
        self._fsync(descriptor)

    def operation(self, *path: object) -> None:
        """Count one; `path` is named in the error where the system would name it."""
        self.done += 1
        if self.fatal in (0, self.done):
            raise OSError(self.number, os.strerror(self.number), *map(str, path))

    def counted(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(path: Path, *arguments: object, **options: object) -> object:
            # A folder that is there is no operation: `exist_ok` takes any error for that.
            if str(path).startswith(self.folder) and not os.path.isdir(path):
                self.operation(path)
            return function(path, *arguments, **options)

        return call

    def open(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" not in mode or not str(file).startswith(self.folder):
            return self._open(file, mode, *arguments, **options)
        self.operation(file)
        return FailingStream(self, self._open(file, mode, *arguments, **options))


class FailingStream:
    """An open file; what is still in its buffer may find no room when it is closed."""

    def __init__(self, disk: FailingDisk, stream: Any) -> None:
        self.disk, self.stream = disk, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, data: Any) -> Any:
        self.disk.operation()
        return self.stream.write(data)

    def __enter__(self) -> "FailingStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.disk.operation()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jpegs(tmp_path_factory.mktemp("photographs"), 4)


def whole(source: Path, out: Path) -> None:
    write_shards(source, out, split="0.5", samples_per_shard=2, workers=1)


def in_parts(source: Path, out: Path) -> None:
    for part in (Part(1, 2), Part(2, 2)):
        write_shards(source, out, split="0.5", samples_per_shard=2, workers=1, part=part)
    write_shards(source, out, split="0.5", samples_per_shard=2, finish=True)


@pytest.mark.parametrize(("number", "run"), [(errno.EIO, whole), (errno.ENOSPC, in_parts)])
def test_any_operation_may_fail(
    photographs: Path, tmp_path: Path, number: int, run: Callable[[Path, Path], None]
) -> None:
    run(photographs, tmp_path / "expected")
    expected = hashes(tmp_path / "expected")
    failures = 0
    while True:
        out = tmp_path / f"{failures}"
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = FailingDisk(monkeypatch, out, number, failures + 1)
            try:
                run(photographs, out)
                break
            except UserError as error:
                failures += 1
                told = str(error)
        message = rf"{re.escape(str(out))}\S*: {os.strerror(number)}; fix that and run again"
        assert re.fullmatch(message, told), f"operation {failures}: {told}"
        assert not list(out.rglob(".*")), f"operation {failures}"
        run(photographs, out)
        assert hashes(out) == expected, f"operation {failures}"
    assert disk.done == failures and hashes(out) == expected
    assert failures > 30, "plan, 2 tars, 2 indexes, 2 manifests: open, write, close, rename and flushes of each"


def test_folders_that_cannot_be_made(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"/file\S*: Not a directory; fix that and run again$"):
        whole(photographs, tmp_path / "file" / "out")
    FailingDisk(monkeypatch, tmp_path / "out", errno.EROFS, 0)
    with pytest.raises(UserError, match=r"/out: Read-only file system; fix that and run again$"):
        whole(photographs, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    with pytest.raises(UserError, match=r"/out/\S*: Permission denied; fix that and run again$"):
        whole(photographs, out)
