"""What a hostile input may do to a command: nothing but end it with one line, soon, in little memory."""

import functools
import hashlib
import io
import os
import resource
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forking import start_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import jpeg
from running import Result, latentfuse

SECONDS, BYTES = 20, 2 * 2**30
"""What any command may take of a processor, and of memory, before it refuses an input."""
FEW_AND_MANY = [pytest.param(4, id="few"), pytest.param(400, id="many", marks=pytest.mark.faults)]
"""For parameters that say how many inputs of a class are tried: in `make test`, and in `make test-faults`."""


def answered(root: Path, *arguments: object, works_in: Path | None = None) -> Result:
    """The command succeeds; or it refuses in time, in one line, and everything below `root` is as it was.

    Args:
        works_in: a folder that may hold finished files of the command even then, but no temporary ones.
    """
    before, began = contents(root, works_in), time.process_time()
    result = latentfuse(*arguments)
    assert time.process_time() - began < SECONDS
    check(result)
    if result.code:
        assert contents(root, works_in) == before
    return result


def refused(root: Path, *arguments: object, works_in: Path | None = None) -> Result:
    """As `answered`, and it does refuse."""
    result = answered(root, *arguments, works_in=works_in)
    assert result.code == 2, result
    return result


def answered_in_little_memory(root: Path, *arguments: object) -> Result:
    """As `answered`, by a process of its own that gets 2 GB more than it starts with; the system ends it in time."""
    files = root.parent / f"{root.name}-said"
    before = contents(root)
    result = start_command(files, *arguments, prepare=limit).finish()
    check(result)
    if result.code:
        assert contents(root) == before
    return result


def check(result: Result) -> None:
    assert result.code in (0, 2), result
    if result.code:
        result.assert_one_line()
        assert result.errors[:-1].isprintable(), result
    else:
        assert "Traceback" not in result.errors, result


def limit() -> None:
    """The memory and the time of this process, from now on."""
    spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS,) * 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def contents(root: Path, works_in: Path | None = None) -> dict[str, str]:
    """What everything below `root` is; of `works_in` only what is hidden, as temporary files are, but for its lock."""
    found = {}
    for parent, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(parent, name)
            inside = works_in is not None and (works_in in path.parents or path == works_in)
            if not inside or (name.startswith(".") and name != ".lock"):
                found[str(path)] = _content(path)
    return found


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if not path.is_file():
        return oct(path.stat().st_mode)
    with path.open("rb") as stream:
        return f"{path.stat().st_size} {hashlib.sha256(stream.read(2**20)).hexdigest()}"


def many(strategy: st.SearchStrategy[Any], examples: int, try_one: Callable[[Any], None]) -> None:
    """Try `try_one` with inputs of a class, the same ones whenever it is run."""
    wanted = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    wanted(given(strategy)(try_one))()


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2**31, 2**53 + 1, 2**63, 10**20, 10**39, 1e308, -0.5, 1e-320]),
    st.text(max_size=8),
    st.sampled_from(["", ".", "..", "../x.tar", "/etc/passwd", "a\nb", "\x1b[2J", "é" * 300, "a" * 100_000]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
"""What JSON and YAML may hold in the place of something else."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to everything in nested lists and objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy of nested lists and objects with something else at one place."""
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


def changes(value: Any) -> st.SearchStrategy[Any]:
    """Copies of nested lists and objects in which one or two places hold something else."""
    at_one = st.tuples(st.sampled_from(places(value)), values).map(lambda pair: replaced(value, *pair))
    return at_one | at_one.flatmap(
        lambda once: st.tuples(st.sampled_from(places(once)), values).map(lambda pair: replaced(once, *pair))
    )


def flips(data: bytes, count: int, seed: int = 0, first: int = 0, last: int | None = None) -> list[bytes]:
    """Copies of `data`, each with one flipped bit between two positions."""
    rng = np.random.default_rng(seed)
    found = []
    for place in rng.integers(first, len(data) if last is None else last, count).tolist():
        copy = bytearray(data)
        copy[place] ^= 1 << int(rng.integers(8))
        found.append(bytes(copy))
    return found


def cuts(data: bytes, count: int) -> list[bytes]:
    """The first part of `data`, of `count` lengths."""
    return [data[: len(data) * n // count] for n in range(count)]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.cache
def photograph(form: str = "JPEG", seed: int = 1) -> bytes:
    return jpeg(seed, (64, 80), form=form)


def tar_of(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()
