"""Workers end when they should, whatever is killed, and never by a signal that was meant for the parent."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import gone

from pipeline.common.errors import Interrupted, UserError
from pipeline.common.processes import run_tasks
from pipeline.common.signals import SIGNALS


def work(folder: Path, task: str) -> None:
    (folder / f"{task} {os.getpid()}").touch()
    for _ in range(0 if task == "quick" else 1000):
        time.sleep(0.02)
    (folder / f"{task} done").touch()


def busy(folder: Path) -> int:
    """Wait until a worker is at a slow task; its process."""
    while not (found := list(folder.glob("slow [0-9]*"))):
        time.sleep(0.005)
    return int(found[0].name.split()[1])


def interrupt(number: int, frame: object) -> None:
    raise Interrupted(number)


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """Every test here gets the handlers of the command line, and leaves neither a worker nor a changed handler."""
    others = set(multiprocessing.active_children())
    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    yield
    assert {signal.signal(number, handler) for number, handler in before.items()} == {interrupt}
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert set(multiprocessing.active_children()) <= others


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Call a function from a thread."""
    threads: list[threading.Thread] = []

    def start(function: Callable[[], object]) -> None:
        threads.append(threading.Thread(target=function))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def test_early_ends_are_quick(tmp_path: Path, later: Callable[[Callable[[], object]], None]) -> None:
    results = run_tasks(work, tmp_path, ["quick", "slow", "slow"], 2)
    next(results)
    started = time.monotonic()
    results.close()
    for path in tmp_path.iterdir():
        path.unlink()
    later(lambda: os.kill(busy(tmp_path), signal.SIGKILL))
    with pytest.raises(UserError, match="a worker process was killed"):
        list(run_tasks(work, tmp_path, ["slow", "slow"], 2))
    assert time.monotonic() - started < 5


def fail(_: None, task: int) -> int:
    raise ZeroDivisionError(task) if task == 3 else UserError(f"task {task}")


def test_what_a_task_raises_is_raised_here() -> None:
    with pytest.raises(UserError, match=r"task \d"):
        list(run_tasks(fail, None, [1, 2], 2))
    with pytest.raises(ZeroDivisionError) as caught:
        list(run_tasks(fail, None, [3, 3], 2))
    assert "in fail" in caught.value.__notes__[0]  # where it was raised


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed can tell nobody."""
    parent = multiprocessing.get_context("fork").Process(
        target=lambda: list(run_tasks(work, tmp_path, ["slow", "slow"], 2))
    )
    parent.start()
    worker = busy(tmp_path)
    parent.kill()
    parent.join()
    assert gone(worker)


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_ignore_signals(
    tmp_path: Path, later: Callable[[Callable[[], object]], None], number: signal.Signals
) -> None:
    seen: list[float] = []

    def signal_worker_then_parent() -> None:
        worker = busy(tmp_path)
        for _ in range(5):
            os.kill(worker, number)
            time.sleep(0.02)
        os.kill(worker, 0)
        seen.append(time.monotonic())
        os.kill(os.getpid(), number)

    later(signal_worker_then_parent)
    with pytest.raises(Interrupted):
        next(run_tasks(work, tmp_path, ["slow", "slow"], 2))
    assert time.monotonic() - seen[0] < 0.8
    assert not list(tmp_path.glob("slow done"))


@pytest.mark.parametrize("milliseconds", [0, 1, 3, 10, 30])
def test_two_signals_while_workers_start_and_end(tmp_path: Path, milliseconds: int) -> None:
    def send() -> None:
        for _ in range(2):
            time.sleep(milliseconds / 1000)
            os.kill(os.getpid(), signal.SIGTERM)

    def start_and_wait_for_both() -> None:
        sender = threading.Thread(target=send)
        try:
            sender.start()
            next(run_tasks(work, tmp_path, ["slow"] * 3, 3))
        finally:
            sender.join()  # the second signal comes here at the latest

    with pytest.raises(Interrupted):
        start_and_wait_for_both()
