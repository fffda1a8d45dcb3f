"""Commands in processes forked from one that has imported everything: a start takes a tenth of a second, not four.

Each is the leader of a process group of its own, as under a launcher, and writes to files.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from running import PATIENCE, Result, finish, free_port, wait_for

_context = multiprocessing.get_context("forkserver")
_started: "list[Started]" = []
PR_SET_PDEATHSIG = 1
"""Of prctl: the signal that a process gets when its parent ends."""
Prepare = Callable[[], None]


class Started:
    """A command that was started; `prepare`, a module's function, runs in its process before it."""

    def __init__(self, folder: Path, arguments: Iterable[object], variables: dict[str, str], prepare: Prepare) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files = folder / "out.txt", folder / "errors.txt"
        self.process = _context.Process(
            target=_command, args=([str(each) for each in arguments], self.files, variables, prepare)
        )
        self.process.start()
        _started.append(self)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("latentfuse", timeout or 0)
        out, errors = (each.read_text() if each.exists() else "" for each in self.files)
        return out, errors

    def signal(self, number: int) -> None:
        """To the process alone; nothing happens if it has ended."""
        if self.process.exitcode is None:
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """As a scheduler does: to its loader's workers too."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            self.signal(number)  # it has not yet made its group

    def text(self) -> str:
        return self.files[0].read_text() if self.files[0].exists() else ""

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Until `condition` holds; fails if the process ends without that."""
        wait_for(condition, self)

    def wait_for_text(self, text: str) -> None:
        """Until it has printed `text`."""
        wait_for(lambda: text in self.text(), self)

    def kill(self) -> None:
        if self.process.exitcode is None:
            self.signal_group(signal.SIGKILL)

    def finish(self, seconds: float = PATIENCE) -> Result:
        return finish(self, seconds)

    def group_is_gone(self) -> bool:
        """Whether no process of its group lives on."""

        def is_empty() -> bool:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            return False

        wait_for(is_empty)
        return True


def kill_all() -> None:
    """Python waits at its end for what a failed test has left, stopped processes included."""
    for each in _started:
        each.kill()


def nothing() -> None:
    """The `prepare` that prepares nothing."""


def start_command(folder: Path, *arguments: object, prepare: Prepare = nothing, **variables: str) -> Started:
    """One process."""
    return Started(folder, arguments, variables, prepare)


def start_ranks(
    folder: Path, count: int, *arguments: object, prepare: Prepare = nothing, **variables: str
) -> list[Started]:
    """`count` ranks of one job on this machine, with no launcher between; output in `folder`/0, 1, ..."""
    job = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    job |= {"MASTER_PORT": str(free_port()), **variables}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [Started(folder / place["RANK"], arguments, job | place, prepare) for place in places]


def _command(arguments: list[str], files: tuple[Path, Path], variables: dict[str, str], prepare: Prepare) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # where the tests are killed, their server ends
    _write_to([os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for path in files])
    os.environ |= {"OMP_NUM_THREADS": "1", **variables}
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as in any process
    from pipeline.cli import app as cli
    from pipeline.training import context

    context.CALIBRATION_IMAGES = 8
    sys.argv = ["latentfuse", *arguments]
    prepare()
    cli.main()


def _write_to(descriptors: Iterable[int]) -> None:
    """Standard output and standard error."""
    for target, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, target)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115


CLIENT = """#!{python} -SI
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [json.dumps([sys.argv[1:], dict(os.environ)]).encode() + b"\\n"], [1, 2])
told = server.makefile()
pid = int(told.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
os._exit(int(told.readline()))
"""


def start_server(folder: Path) -> Path:
    """For scripts that start `latentfuse` themselves: the path of a program whose process is forked here, too."""
    address, program = folder / "socket", folder / "bin" / "latentfuse"
    program.parent.mkdir(parents=True)
    server = start_command(folder, prepare=_serve, SERVE=str(address))
    server.wait_for(address.exists)
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    return program


def _serve() -> None:
    """Returns in a process for each client, which is to run what the client was called with."""
    narrow()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.environ["SERVE"] + "~")
        server.listen()
        os.rename(os.environ["SERVE"] + "~", os.environ["SERVE"])
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                break
            client.close()
    message, descriptors, _, _ = socket.recv_fds(client, 2**20, 2)
    while not message.endswith(b"\n"):
        message += client.recv(2**20)
    pid = os.fork()
    if pid:
        client.sendall(f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        client.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
        os._exit(0)
    client.close()  # it stays in the server's process group, and ends with it
    _write_to(descriptors)
    arguments, variables = json.loads(message)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv[1:] = arguments


def narrow() -> None:
    """A perceptual network of an eighth of the channels: most of the time of a tiny run is VGG's."""
    from torchvision.models import vgg

    vgg.cfgs = {name: [c if isinstance(c, str) else c // 8 for c in cfg] for name, cfg in vgg.cfgs.items()}


def on_a_slow_disk() -> None:
    """Whatever is made to last takes a while, so that a signal or a kill finds it half done."""
    narrow()
    flush = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(float(os.environ.get("FSYNC_SECONDS", "0.02")))
        flush(descriptor)

    os.fsync = slow  # type: ignore[assignment]


def until_released(what: str) -> None:
    """For a `prepare` that makes something slow: tells `what`, and goes on once there is the file $RELEASE."""
    print(what, flush=True)
    wait_for(Path(os.environ["RELEASE"]).exists)
