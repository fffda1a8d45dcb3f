"""Two machines, as two network namespaces on this one: they train, one is lost, and it comes back."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from forking import narrow, start_command
from running import ENDLESS_JOB, Process, Trained, accelerate_launch, finish, tiny_arguments, wait_for

from pipeline.training import checkpoint

pytestmark = pytest.mark.faults  # `test_lost_ranks` has the first of their kind
PORT = "29555"
"""Free in every new network namespace."""


@dataclass(frozen=True)
class Node:
    """A network namespace with one interface."""

    name: str
    address: str

    def run(self, *command: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.name, *command], check=True)

    def processes(self) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in done.stdout.split()]


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes with a cable between them."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root on Linux, and iproute2")
    names = [f"lf{os.getpid() % 10_000}{side}" for side in "ab"]
    made = [Node(name, f"10.77.0.{number}") for number, name in enumerate(names, 1)]
    if subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("network namespaces are not allowed here")
    try:
        subprocess.run(["ip", "netns", "add", names[1]], check=True)
        cable = ["ip", "link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1], "netns", names[1]]
        subprocess.run(cable, check=True)
        for node in made:
            node.run("ip", "address", "add", f"{node.address}/24", "dev", node.name)
            node.run("ip", "link", "set", node.name, "up")
            node.run("ip", "link", "set", "lo", "up")
        yield made[0], made[1]
    finally:
        for node in made:
            for pid in node.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", node.name], check=False)


def on_its_node() -> None:
    """Enter the network namespace $NODE."""
    narrow()
    descriptor = os.open(f"/run/netns/{os.environ['NODE']}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), "setns")


def start_ranks(nodes: tuple[Node, Node], folder: Path, *arguments: str) -> list[Process]:
    """One rank on each, as `srun` starts them."""
    job = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": nodes[0].address, "MASTER_PORT": PORT}
    return [
        start_command(
            folder / node.name, "pretrain", *arguments, prepare=on_its_node,
            NODE=node.name, GLOO_SOCKET_IFNAME=node.name, RANK=str(rank), **job,
        )
        for rank, node in enumerate(nodes)
    ]  # fmt: skip


def launch(nodes: tuple[Node, Node], folder: Path, *arguments: str) -> list[Process]:
    """`accelerate launch` on each."""
    return [
        accelerate_launch(
            "pretrain", *arguments, port=PORT, machines=2, main_process_ip=nodes[0].address, machine_rank=rank,
            before=("ip", "netns", "exec", node.name), GLOO_SOCKET_IFNAME=node.name,
        )
        for rank, node in enumerate(nodes)
    ]  # fmt: skip


Starter = Callable[..., list[Process]]


def have_ended(nodes: tuple[Node, ...]) -> bool:
    wait_for(lambda: not any(node.processes() for node in nodes))
    return True


def assert_comes_back(nodes: tuple[Node, Node], run: Path, shards: Path, begin: Starter) -> None:
    newest, passed_over = checkpoint.newest(run / "pretrain" / "checkpoints")
    assert newest is not None and newest.step >= 10 and not passed_over
    arguments = tiny_arguments(run, shards, *ENDLESS_JOB, f"training.pretrain_steps={newest.step + 2}")
    results = [finish(each) for each in begin(nodes, run.parent / "again", *arguments)]
    assert [each.code for each in results] == [0, 0], results
    assert f"resumed from {newest.path}" in results[0].out


def test_a_node_dies_and_comes_back(nodes: tuple[Node, Node], trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = start_ranks(nodes, tmp_path / "first", *tiny_arguments(run, trained.shards, *ENDLESS_JOB))
    wait_for(lambda: list(run.glob("pretrain/checkpoints/step-*")), started[0])
    for pid in nodes[1].processes():
        os.kill(pid, signal.SIGKILL)
    result = finish(started[0])
    assert result.code == 76 and result.errors.endswith("the same command resumes\n"), result
    assert have_ended(nodes)
    assert_comes_back(nodes, run, trained.shards, start_ranks)


@pytest.mark.parametrize("begin", [start_ranks, launch])
def test_a_cable_is_pulled(nodes: tuple[Node, Node], trained: Trained, tmp_path: Path, begin: Starter) -> None:
    """Both nodes live on, but nothing passes, and no connection is closed."""
    run = tmp_path / "run"
    started = begin(nodes, tmp_path / "first", *tiny_arguments(run, trained.shards, *ENDLESS_JOB))
    wait_for(lambda: list(run.glob("pretrain/checkpoints/step-*")), started[0])
    nodes[1].run("ip", "link", "set", nodes[1].name, "down")
    pulled = time.monotonic()
    results = [finish(each) for each in started]
    assert time.monotonic() - pulled < 75, "60 s for the ranks, and what the launcher takes"
    for result in results:
        assert result.code == (76 if begin is start_ranks else 1), results
        assert "lost another rank" in result.errors and "the same command resumes" in result.errors
    assert have_ended(nodes)
    nodes[1].run("ip", "link", "set", nodes[1].name, "up")
    assert_comes_back(nodes, run, trained.shards, begin)
