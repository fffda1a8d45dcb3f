"""A disk that says no, at every operation of a save: the earlier checkpoints stay, nothing half-written does."""

import builtins
import errno
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Trained, file_size_limit, latentfuse, listing, tiny_arguments
from safetensors import SafetensorError

from pipeline.common.errors import UserError
from pipeline.training import checkpoint


class Disk:
    """Counts operations, and lets the n-th fail."""

    def __init__(self, fail_at: int, code: int) -> None:
        self.fail_at, self.code, self.count = fail_at, code, 0
        self.failed: str | None = None

    def operation(self, name: str) -> None:
        self.count += 1
        if self.count == self.fail_at:
            self.failed = name
            raise OSError(self.code, os.strerror(self.code))

    def wrap(self, function: Callable[..., Any], name: str, turn: type[Exception] | None = None) -> Callable[..., Any]:
        """`function`, failing before it does anything; `turn`: as a library tells of it in its own way."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            try:
                self.operation(name)
            except OSError as error:
                raise (turn(str(error)) if turn else error) from None
            return function(*arguments, **named)

        return wrapped

    def wrap_half(self, function: Callable[..., Any], name: str, turn: type[Exception] | None) -> Callable[..., Any]:
        """`function`, failing after it has written: half of the file is there."""

        def wrapped(value: Any, path: Path, **named: Any) -> Any:
            function(value, path, **named)
            try:
                self.operation(name)
            except OSError as error:
                Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])
                raise (turn(str(error)) if turn else error) from None

        return wrapped


@contextmanager
def failing(disk: Disk) -> Iterator[None]:
    """Every write that a save makes goes through `disk`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pathlib.Path, "mkdir", disk.wrap(pathlib.Path.mkdir, "mkdir"))
        patch.setattr(pathlib.Path, "rename", disk.wrap(pathlib.Path.rename, "rename"))
        patch.setattr(pathlib.Path, "write_text", disk.wrap(pathlib.Path.write_text, "write_text"))
        patch.setattr(os, "fsync", disk.wrap(os.fsync, "fsync"))
        # What the libraries say when the system says no.
        patch.setattr(checkpoint, "save_file", disk.wrap_half(checkpoint.save_file, "weights", SafetensorError))
        patch.setattr(torch, "save", disk.wrap_half(torch.save, "optimizers", RuntimeError))
        yield


def save(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, step, {"a.b": torch.full((8,), float(step))}, {"scaler": {}}, {}, 2)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_operation_of_a_save(tmp_path: Path, code: int) -> None:
    failed = []
    for number in range(1, 100):
        folder = tmp_path / str(number)
        save(folder, 1)
        save(folder, 2)
        before = listing(folder)
        disk = Disk(number, code)
        told = ""
        try:
            with failing(disk):
                save(folder, 3)
        except UserError as error:
            told = str(error)
        if disk.failed:
            assert str(folder / "step-00000003") in told and "\n" not in told
            if disk.failed == "fsync" and (folder / "step-00000003").exists():  # all is there but the last flush
                assert checkpoint.load(folder / "step-00000003").step == 3
                assert listing(folder) - before == {p for p in listing(folder) if p.startswith("step-00000003")}
            else:
                assert listing(folder) == before, disk.failed
                found, passed_over = checkpoint.newest(folder)
                assert found is not None and found.step == 2 and not passed_over
            failed.append(disk.failed)
            save(folder, 3)  # once there is room again
            assert checkpoint.load(folder / "step-00000003").step == 3
        else:
            assert not told
            break
    assert set(failed) == {"mkdir", "rename", "write_text", "fsync", "weights", "optimizers"} and len(failed) >= 12


def further(trained: Trained, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the trained run, and the command that goes on with it."""
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    return run, ["train", *tiny_arguments(run, trained.shards, "training.fusion_steps=6")]


def test_a_run_that_finds_no_room_loses_nothing(trained: Trained, tmp_path: Path) -> None:
    run, command = further(trained, tmp_path)
    weights = max(path.stat().st_size for path in (run / "train").rglob("model.safetensors"))
    with file_size_limit(weights - 1):
        latentfuse(*command).assert_one_line("step-00000006", "could not be written", "earlier ones are intact")
    assert not list(run.rglob("*.tmp*"))
    again = latentfuse(*command)
    assert again.code == 0 and "train: resumed from" in again.out and "step-00000004" in again.out


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system: root on Linux only")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_real_disk_that_is(trained: Trained, tmp_path: Path, kind: str) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", mounted], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = Path(shutil.copytree(trained.run, mounted / "run"))
        command = ["train", *tiny_arguments(run, trained.shards, "training.fusion_steps=6")]
        (tmp_path / "tiny.yaml").write_text((mounted / "tiny.yaml").read_text())
        if kind == "full":
            free = shutil.disk_usage(mounted).free
            with builtins.open(mounted / "filler", "wb") as filler:
                filler.write(bytes(free - 60_000))
            told = latentfuse(*command)
            told.assert_one_line(str(run), "No space left on device")
        else:
            subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
            told = latentfuse(*command)
            told.assert_one_line(str(run), "Read-only file system")
            subprocess.run(["mount", "-o", "remount,rw", mounted], check=True)
        (mounted / "filler").unlink(missing_ok=True)
        assert not list(run.rglob("*.tmp*"))
        again = latentfuse(*command)
        assert again.code == 0 and "step-00000004" in again.out and "train: resumed from" in again.out
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)
