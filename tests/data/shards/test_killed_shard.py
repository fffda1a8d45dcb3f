"""`shard` is killed at any moment, by any number of times: the last run ends in the same bytes."""

import multiprocessing
import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import killing
import pytest
from making import hashes, jpegs

from pipeline.data.shards.writing import write_shards

IMAGES, SHARDS = 24, 13


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jpegs(tmp_path_factory.mktemp("photographs"), IMAGES)


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Children of a server that has imported everything: a start takes milliseconds."""
    return multiprocessing.get_context("forkserver")


@dataclass
class Victim:
    """Runs of `shard` into one folder after another; a folder that is finished is compared, and a new one begun."""

    context: ForkServerContext
    source: Path
    folder: Path
    chance: random.Random
    whole_seconds: float = 0.0
    folders: int = 0
    kills: int = 0
    kills_with_leftovers: int = 0
    seen: set[Path] = field(default_factory=set)
    left: Counter[str] = field(default_factory=Counter)
    finished: dict[Path, tuple[int, int]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / str(self.folders)

    def measure(self) -> dict[str, str]:
        """An undisturbed run: how long it takes, and what it writes."""
        process, alive = self.start(workers=1)
        started = time.monotonic()
        process.join()
        self.whole_seconds = time.monotonic() - started
        alive.close()
        expected = hashes(self.out)
        assert len(list(self.out.glob("*/*.tar"))) == SHARDS
        self.folders += 1
        return expected

    def start(self, workers: int, part: str | None = None, last: int | None = None) -> tuple[BaseProcess, Connection]:
        """The process, and a pipe that ends when it and all its workers have."""
        alive, theirs = self.context.Pipe(duplex=False)
        arguments = (theirs, self.source, self.out, workers, part, last)
        process = self.context.Process(target=killing.shard, args=arguments)
        process.start()
        theirs.close()
        alive.recv()
        return process, alive

    def kill_once(self, attempt: int) -> bool:
        """Start and kill. Whether it was alive to be killed."""
        workers, how = 1 + attempt % 2, ("alone", "group", "operation")[attempt // 2 % 3]
        of = self.chance.randint(1, 3)
        part = f"{self.chance.randint(1, of)}/{of}" if self.chance.random() < 0.25 else None
        last = self.chance.randint(1, 60) if how == "operation" else None
        if not (self.out / "plan.json").exists() or len(list(self.out.glob("*/[!.]*.index.json"))) == SHARDS:
            part, last = None, self.chance.randint(1, 8)  # only the plan or the manifests are to be written
        process, alive = self.start(workers, part, last)
        assert process.pid
        if last is None:
            time.sleep(self.chance.uniform(0, 0.9 * self.whole_seconds))
            with suppress(ProcessLookupError):  # it was quicker
                (os.kill if how == "alone" else os.killpg)(process.pid, signal.SIGKILL)
        process.join()
        assert alive.poll(3), "a worker outlived its parent"
        with alive, pytest.raises(EOFError):
            alive.recv()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0

    def note(self) -> None:
        """Finished shards stay the files that they were; count what the kill left."""
        before, self.finished = self.finished, {}
        for index in self.out.glob("*/[!.]*.index.json"):
            for path in (index, index.with_name(index.name.replace(".index.json", ".tar"))):
                status = path.stat()
                self.finished[path] = (status.st_ino, status.st_mtime_ns)
        assert {path: self.finished.get(path) for path in before} == before, "a finished shard was written again"
        new = set(self.out.rglob(".*")) - self.seen  # a part leaves those of others where they are
        self.seen |= new
        self.kills_with_leftovers += bool(new)
        for path in new:
            self.left[re.sub(r"^\.|(?<=shard)-\d{6}|-[0-9a-f]{8}\.tmp", "", path.name)] += 1


def kill(victim: Victim, kills: int) -> None:
    expected = victim.measure()
    attempt = 0
    while victim.kills < kills:
        victim.kills += victim.kill_once(attempt)
        attempt += 1
        victim.note()
        if list(victim.out.glob("*/manifest.json")) and hashes(victim.out) == expected:
            victim.folders, victim.finished = victim.folders + 1, {}
    write_shards(victim.source, victim.out, workers=2, **killing.OPTIONS)
    victim.note()
    assert hashes(victim.out) == expected
    assert not list(victim.out.rglob(".*"))
    print(f"{victim.kills} kills, {victim.folders} folders finished before, {victim.whole_seconds:.3f} s a run")
    print(f"{victim.kills_with_leftovers} kills left temporary files: {dict(victim.left)}")


def test_a_few_kills(context: ForkServerContext, photographs: Path, tmp_path: Path) -> None:
    victim = Victim(context, photographs, tmp_path, random.Random(0))
    kill(victim, 8)
    assert victim.kills_with_leftovers > 0, "a kill should have left a temporary file"


@pytest.mark.faults
def test_two_hundred_kills(context: ForkServerContext, photographs: Path, tmp_path: Path) -> None:
    victim = Victim(context, photographs, tmp_path, random.Random(1))
    kill(victim, 200)
    assert victim.left.keys() >= {"plan.json", "shard.tar", "shard.index.json", "manifest.json"}, victim.left
