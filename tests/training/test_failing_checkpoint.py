"""A disk that says no, at every operation of a save: the earlier checkpoints stay, nothing half-written does."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from running import STATE, Trained, file_size_limit, latentfuse, listing, tiny_arguments
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.common.errors import UserError
from pipeline.training import checkpoint


class Disk:
    """Counts operations, and lets the n-th fail."""

    def __init__(self, fail_at: int) -> None:
        self.fail_at, self.count = fail_at, 0
        self.failed: str | None = None

    def operation(self, name: str, raised: type[Exception] = OSError) -> None:
        self.count += 1
        if self.count == self.fail_at:
            self.failed = name
            reason = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, reason) if raised is OSError else raised(reason)

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`function`, failing before it does anything."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.operation(name)
            return function(*arguments, **named)

        return wrapped

    def wrap_half(self, function: Callable[..., Any], name: str, raised: type[Exception]) -> Callable[..., Any]:
        """`function` of a library, failing in the library's own way when half of the file is written."""

        def wrapped(value: Any, path: Path, **named: Any) -> None:
            function(value, path, **named)
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            self.operation(name, raised)
            path.write_bytes(whole)

        return wrapped


@contextmanager
def failing(disk: Disk) -> Iterator[None]:
    """Every write that a save makes goes through `disk`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "write_text"):
            patch.setattr(Path, name, disk.wrap(getattr(Path, name), name))
        patch.setattr(os, "fsync", disk.wrap(os.fsync, "fsync"))
        patch.setattr(checkpoint, "save_file", disk.wrap_half(save_file, "weights", SafetensorError))
        patch.setattr(torch, "save", disk.wrap_half(torch.save, "optimizers", RuntimeError))
        yield


def save(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, step, {"a.b": torch.full((8,), float(step))}, {"scaler": {}}, STATE, 2)


def test_every_operation_of_a_save(tmp_path: Path) -> None:
    failed = []
    for number in range(1, 100):
        folder = tmp_path / str(number)
        save(folder, 1)
        save(folder, 2)
        before = listing(folder)
        disk = Disk(number)
        told = ""
        try:
            with failing(disk):
                save(folder, 3)
        except UserError as error:
            told = str(error)
        if disk.failed:
            assert str(folder / "step-00000003") in told and "\n" not in told
            assert disk.failed != "optimizers" or "is the disk full?" in told, "torch does not say why"
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


def test_a_run_that_finds_no_room_loses_nothing(trained: Trained, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    command = ["train", *tiny_arguments(run, trained.shards, "training.fusion_steps=6", "tracking.trackers=[]")]
    weights = max(path.stat().st_size for path in (run / "train").rglob("model.safetensors"))
    with file_size_limit(weights - 1):
        latentfuse(*command).assert_one_line("step-00000006", "could not be written", "earlier ones are intact")
    assert not list(run.rglob("*.tmp*"))
    again = latentfuse(*command)
    assert again.code == 0 and "train: resumed from" in again.out and "step-00000004" in again.out


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system: root on Linux only")
def test_a_disk_that_becomes_read_only(trained: Trained, tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", mounted], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = Path(shutil.copytree(trained.run, mounted / "run"))
        command = ["train", *tiny_arguments(run, trained.shards, "training.fusion_steps=6")]
        (tmp_path / "tiny.yaml").write_text((mounted / "tiny.yaml").read_text())
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
        latentfuse(*command).assert_one_line(str(run), "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", mounted], check=True)
        assert not list(run.rglob("*.tmp*"))
        again = latentfuse(*command)
        assert again.code == 0 and "step-00000004" in again.out and "train: resumed from" in again.out
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)
