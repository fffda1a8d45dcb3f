"""Free memory is the machine's, or what a control group leaves of it."""

from pathlib import Path

import pytest

from pipeline.common.memory import free_memory

MIB = 2**20


def write(root: Path, **files: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def system(tmp_path: Path) -> Path:
    write(tmp_path / "proc", meminfo="MemTotal: 8192 kB\nMemAvailable: 4194304 kB")
    write(tmp_path / "proc" / "self", cgroup="0::/job/step")
    return tmp_path


def test_the_machine_alone(system: Path, tmp_path: Path) -> None:
    assert free_memory(system) == 4096 * MIB
    assert free_memory(tmp_path / "no Linux") is None


def test_the_group_above_may_have_less(system: Path) -> None:
    groups = system / "sys" / "fs" / "cgroup"
    write(groups / "job" / "step", memory__max="max", memory__current=5)
    write(groups / "job", memory__max=1000 * MIB, memory__current=900 * MIB, memory__stat=f"inactive_file {30 * MIB}")
    assert free_memory(system) == 130 * MIB, "cached files make room"


def test_groups_of_the_first_version(system: Path) -> None:
    write(system / "proc" / "self", cgroup="9:name=systemd:/\n4:memory:/slurm/job\n1:cpu:/slurm")
    folder = system / "sys" / "fs" / "cgroup" / "memory" / "slurm" / "job"
    write(folder, memory__limit_in_bytes=500 * MIB, memory__usage_in_bytes=100 * MIB, memory__stat="cache 3")
    assert free_memory(system) == 400 * MIB


def test_this_machine() -> None:
    free = free_memory()
    assert free is None or free > MIB
