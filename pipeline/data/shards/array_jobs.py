"""One shards folder, several processes: the share of each, the plan that all of them keep to, and the lock."""

import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.errors import UserError
from pipeline.common.files import fsync, os_errors_named, read_bytes, write_json
from pipeline.data.shards.format import MAX_JSON_BYTES, PLAN, SCHEMA, parse_json
from pipeline.data.shards.packing import Options, Task
from pipeline.data.source.photographs import Source

PARTS = "parts.json"
"""Of how many parts there were: there from the first part until the manifests are."""
LOCK_PATIENCE_SECONDS = 3.0

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_NAMED_IN_MESSAGES = 8


class Part(NamedTuple):
    """Share `number` of `of`, 1 <= `number` <= `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `2/4`. Raises UserError."""
        found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
        part = cls(int(found[1]), int(found[2])) if found else None
        if part is None or not 1 <= part.number <= part.of:
            raise UserError(f"--part {text}: i/n with i from 1 to n wanted, as --part 1/4")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, tasks: dict[str, list[Task]]) -> dict[str, list[Task]]:
        """Every `of`-th shard, counted through all splits: no two parts differ by more than one shard."""
        mine = {task.path for task in in_a_row(tasks)[self.number - 1 :: self.of]}
        return {split: [task for task in shards if task.path in mine] for split, shards in tasks.items()}


def in_a_row(tasks: dict[str, list[Task]]) -> list[Task]:
    """The shards of all splits, in the order in which parts count them."""
    return [task for shards in tasks.values() for task in shards]


@contextmanager
def locked(out: Path, shared: bool) -> Iterator[None]:
    """Keep others out of the folder, or with `shared` only those who do not share it.

    Nothing is left behind, whatever happens to this process.
    """
    descriptor = os.open(out, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # The workers of a killed run hold its lock for the moment they need to notice.
                if time.monotonic() > deadline:
                    raise UserError(f"{out}: another process is writing shards here; wait for it to end") from None
                time.sleep(0.1)
            except OSError:
                break  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def planned_split(out: Path) -> str | None:
    """How an earlier run or another part splits the images; None: nothing is planned, or the plan is damaged."""
    try:
        split = parse_json(dict[str, Any], read_bytes(out / PLAN, MAX_JSON_BYTES))["options"]["split"]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return split if isinstance(split, str) else None


def settle_plan(out: Path, source: Source, options: Options, splits: list[str]) -> None:
    """Write the plan, or compare with the one that an earlier run or another part has written."""
    path = out / PLAN
    now = asdict(options)
    plan = {"schema": SCHEMA, "fingerprint": source.fingerprint, "images": len(source.records), "options": now}
    if not path.exists():
        foreign = [name for name in splits if next((out / name).glob("[!.]*.tar"), None)]
        if foreign and not path.exists():  # looked at again: another part may have begun in between
            raise UserError(f"{out / foreign[0]}: holds tars that `shard` did not plan; choose another folder")
        _write_unless_there(path, json.dumps(plan, indent=2, sort_keys=True) + "\n")
    try:
        before = parse_json(dict[str, Any], read_bytes(path, MAX_JSON_BYTES))
        then = dict(before["options"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged; choose another folder, or delete {out}") from None
    if before == plan:
        return
    differences = [
        f"{name}: {then.get(name)!s:.60} there, {value} now" for name, value in now.items() if then.get(name) != value
    ]
    if then.get("validate") is False:
        differences.append("written with --no-validate, which there is no longer")
    if before.get("fingerprint") != plan["fingerprint"]:
        differences.append(f"source: {before.get('images')!s:.60} images there, {plan['images']} now, or other files")
    if before.get("schema") != SCHEMA:
        differences.append(f"schema: {before.get('schema')!s:.60} there, {SCHEMA} now")
    raise UserError(
        f"{out}: shards of other options or another source ({'; '.join(differences)}); "
        "choose another folder, or delete it"
    )


def _write_unless_there(path: Path, text: str) -> None:
    """Write a whole file, or leave the one that another process was first to write."""
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.tmp{path.suffix}")
    with os_errors_named(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            fsync(temporary)
            try:
                os.link(temporary, path)  # unlike a rename it replaces nothing
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                temporary.replace(path)  # a file system without links
        finally:
            temporary.unlink(missing_ok=True)
        fsync(path.parent)


def remove_leftovers(out: Path, tasks: dict[str, list[Task]], *, only_shards: bool) -> None:
    """Remove what a kill left; `only_shards`: of these shards alone, as another part may be writing the rest now."""
    ours = {task.path for task in in_a_row(tasks)}
    for folder in (out, *(out / split for split in tasks)):
        for path in folder.glob(".*-????????.tmp.*"):  # as `replacing` names them
            shard = re.match(r"\.(shard-\d+)", path.name)
            if not only_shards or (shard and path.with_name(f"{shard[1]}.tar") in ours):
                path.unlink(missing_ok=True)


def note_parts(out: Path, part: Part) -> None:
    """Note how many parts there are, so that a lost one can be named."""
    if _noted_parts(out) != part.of:
        write_json(out / PARTS, {"parts": part.of})


def forget_parts(out: Path) -> None:
    """Remove the note: the shards are finished."""
    if (out / PARTS).exists():  # finished shards may be where nothing can be written
        (out / PARTS).unlink(missing_ok=True)


def _noted_parts(out: Path) -> int | None:
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        parts = parse_json(dict[str, Any], read_bytes(out / PARTS, MAX_JSON_BYTES))["parts"]
        return parts if isinstance(parts, int) and parts > 0 else None
    return None


def missing(out: Path, tasks: dict[str, list[Task]], unfinished: list[Task]) -> UserError:
    """What to say when a folder is to be finished and shards are missing: which, and what writes them."""
    numbers = {task.path: number for number, task in enumerate(in_a_row(tasks))}
    names = [str(task.path.relative_to(out)) for task in unfinished[:_NAMED_IN_MESSAGES]]
    more = ", ..." if len(unfinished) > len(names) else ""
    of = _noted_parts(out)
    lost = sorted({numbers[task.path] % of + 1 for task in unfinished}) if of else []
    parts = ", ".join(f"--part {number}/{of}" for number in lost) or "every --part i/n"
    return UserError(
        f"{out}: {len(unfinished)} of {len(numbers)} shards missing ({', '.join(names)}{more}); "
        f"run {parts}, then --finish again"
    )
