"""Copy shards to a node's own disk, by hash: every file is checked against its manifest's SHA-256 as it is copied.

SOURCE is a folder or a URL; `opened` reads both. WebDataset's own `gopen` has no s3://, keeps to itself what a tool
said, and does not see one fail behind its last byte.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.data.pool import run_tasks, stoppable
from pipeline.data.shards import MANIFEST, SCHEMA, Manifest, ShardEntry, index_path, load_manifest, os_errors_named
from pipeline.errors import UserError
from pipeline.files import replacing, sha256
from pipeline.progress import progress

BLOCK = 2**20
SPLITS = ("train", "validation", "test")
# No limit on a transfer that has begun: curl would start it again behind what it has written.
CURL = ("curl", "-gfsSL", "--connect-timeout", "30", "--retry", "30", "--retry-delay", "2")
# What curl, aws, cat and gcloud say of a file that is not there; a bucket that may not be listed answers 403.
_NOT_THERE = re.compile(r"(error|HTTP\S*|\():? ?(403|404|410)\b|No such file|NoSuchKey", re.IGNORECASE)
_NOTHING_MATCHES = "matched no objects"


class NotThere(UserError):
    """A file or URL that does not exist, as far as its server tells."""


@dataclass(frozen=True)
class StagedSplit:
    """One split as it is on the node's disk; `copied` of its shards are new, the others were there."""

    folder: Path
    samples: int
    shards: int
    copied: int
    bytes: int
    content_hash: str


@dataclass(frozen=True)
class StageSummary:
    """What `stage` copied, or found copied."""

    splits: tuple[StagedSplit, ...]

    @property
    def copied(self) -> int:
        """Shards copied by this call; 0 when all were there."""
        return sum(split.copied for split in self.splits)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        splits = [asdict(split) | {"folder": str(split.folder)} for split in self.splits]
        return {"copied": self.copied, "splits": splits}


@dataclass(frozen=True)
class _Split:
    source: str
    folder: Path
    content: bytes
    """Of the manifest, kept as it is."""
    manifest: Manifest


@dataclass(frozen=True)
class _Task:
    source: str
    folder: Path
    shard: ShardEntry


def stage(source: str, destination: Path, *, workers: int | None = None) -> StageSummary:
    """Copy a shards folder, or every split of one, to `destination`; files that are there and whole are kept.

    May be called by every process of a node at once: one copies, the others wait for it.

    Args:
        source: a path, or a URL of http://, https:// or s3://, or `pipe:` and a command with {} for the file's name.
        workers: files copied at a time; None: as many as processors.

    Raises:
        UserError: there are no shards in `source`, a file differs from its manifest, `destination` holds other shards
            or has no room for these.
    """
    with os_errors_named(destination):
        splits = _splits(source, destination)
        destination.mkdir(parents=True, exist_ok=True)
        before = [_verified_at(split) for split in splits]
        with _locked(destination):
            # A manifest is written anew each time: another process has finished it while this one waited.
            due = [split for split, then in zip(splits, before, strict=True) if _verified_at(split) in (None, then)]
            for split in splits:
                _remove_leftovers(split.folder)
                _refuse_other_shards(split)
            tasks = [_Task(split.source, split.folder, shard) for split in due for shard in split.manifest.shards]
            _check_space(destination, tasks)
            with closing(run_tasks(_stage_shard, None, tasks, workers)) as done:
                copied = Counter(progress(done, "shards", len(tasks)))
            for split in due:
                with replacing(split.folder / MANIFEST) as temporary:
                    temporary.write_bytes(split.content)
    return StageSummary(tuple(_summary(split, copied[split.folder]) for split in splits))


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """The bytes of a path, an http://, https:// or s3:// URL, or what a `pipe:` command writes. Read to the end.

    Raises:
        UserError: naming the URL, when it cannot be opened or its tool fails, be it after the last byte.
    """
    command = _command(url)
    if command is None:
        try:
            stream: IO[bytes] = open(url.removeprefix("file://"), "rb")  # noqa: SIM115
        except OSError as error:
            raise _failure(url, error.strerror or str(error)) from None
        with stream:
            yield stream
        return
    with tempfile.TemporaryFile() as said, _started(command, url, said) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
            while process.stdout.read(BLOCK):
                pass
        except UserError:
            # What the reader found wrong with the bytes may be for want of the rest.
            if process.stdout.read(1) or not process.wait():
                raise
        if process.wait():
            said.seek(0)
            text = said.read().decode(errors="replace").strip()
            raise _failure(url, text or f"its command ended with code {process.returncode}") from None


def _command(url: str) -> list[str] | str | None:
    """What writes the bytes of `url`: words, a line for the shell, or None for a file."""
    if url.startswith("pipe:"):
        return url.removeprefix("pipe:")
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return None
    if scheme in ("http", "https"):
        return [*CURL, url]
    if scheme == "s3":
        return ["aws", "s3", "cp", "--only-show-errors", url, "-"]
    raise UserError(f"{url}: {scheme}:// is not known; give a path, http://, https://, s3:// or pipe:COMMAND")


@contextmanager
def _started(command: list[str] | str, url: str, said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the tool in a session of its own, where Ctrl-C does not reach it; end it with the block."""
    try:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise UserError(f"{url}: `{command[0]}` is not installed; install it, or give pipe:COMMAND") from None
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # a loader's worker ignores the gentler ones, and so do its children
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _failure(url: str, said: str) -> UserError:
    """Tools come to the point in their last line, but for gcloud, which ends with the URL."""
    reason = said.splitlines()[-1]
    missing = _NOT_THERE.search(reason) or _NOTHING_MATCHES in said
    return (NotThere if missing else UserError)(f"{url}: cannot be read: {reason}")


def _blocks(url: str) -> Generator[bytes, None, None]:
    with opened(url) as stream:
        try:
            while block := stream.read(BLOCK):
                yield block
        except OSError as error:
            raise UserError(f"{url}: cannot be read: {error.strerror}") from None


def _inside(source: str, folder: str) -> str:
    return source.replace("{}", folder + "{}") if source.startswith("pipe:") else f"{source.rstrip('/')}/{folder}"


def _file(source: str, name: str) -> str:
    """Path or URL of a file of `source`."""
    return source.replace("{}", shlex.quote(name)) if source.startswith("pipe:") else f"{source.rstrip('/')}/{name}"


def _splits(source: str, destination: Path) -> list[_Split]:
    """`source` itself if it has a manifest, else each of its splits that has one."""
    if source.startswith("pipe:") and "{}" not in source:
        raise UserError(f"{source}: write {{}} where the file's name belongs, as in pipe:ssh host cat /shards/{{}}")
    found: list[_Split] = []
    missing: list[NotThere] = []
    for place in ("", *(f"{split}/" for split in SPLITS)):
        inside = _inside(source, place)
        url = _file(inside, MANIFEST)
        try:
            content = b"".join(_blocks(url))
        except NotThere as reason:
            missing.append(reason)
            continue
        found.append(_Split(inside, destination / place, content, _manifest(content, url)))
        if not place:
            break
    if not found:
        raise UserError(f"{source}: no {MANIFEST} in it, in train/, validation/ or test/ ({missing[0]})")
    return found


def _manifest(content: bytes, url: str) -> Manifest:
    try:
        value = json.loads(content)
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}, this version reads {SCHEMA}")
        manifest = Manifest.from_dict(value)
        for shard in manifest.shards:
            if Path(shard.file).name != shard.file:
                raise ValueError(f"{shard.file!r} is not in its folder")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{url}: damaged, or not a manifest of shards ({error}); write it again") from None
    return manifest


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process of this node is in this block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _verified_at(split: _Split) -> int | None:
    """When the manifest was written, which is after its files were found whole."""
    with suppress(FileNotFoundError):
        return (split.folder / MANIFEST).stat().st_mtime_ns
    return None


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".*-????????.tmp.*"):  # as `replacing` names them
        path.unlink(missing_ok=True)


def _refuse_other_shards(split: _Split) -> None:
    there = None
    with suppress(UserError):  # none, or damaged: it is written again
        there = load_manifest(split.folder).content_hash
    more = {path.name for path in split.folder.glob("[!.]*.tar")} - {shard.file for shard in split.manifest.shards}
    what = f"{min(more)}, which {split.source} has not" if more else ""
    if there not in (None, split.manifest.content_hash):
        what = f"other shards than {split.source}"
    if what:
        raise UserError(f"{split.folder}: holds {what}; choose another folder, or delete it")


def _check_space(destination: Path, tasks: list[_Task]) -> None:
    wanted = [(task.folder / task.shard.file, task.shard.bytes) for task in tasks]
    needed = sum(size for path, size in wanted if not (path.is_file() and path.stat().st_size == size))
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise UserError(
            f"{destination}: {needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free; "
            "make room, or name a folder on a larger disk"
        )


def _stage_shard(shared: None, task: _Task) -> Path | None:
    """Copy what is missing of a shard; the split's folder if anything was."""
    folder, shard = task.folder, task.shard
    files = {index_path(folder / shard.file): shard.index_sha256, folder / shard.file: shard.sha256}
    missing = {path: digest for path, digest in files.items() if not (path.is_file() and sha256(path) == digest)}
    for path, digest in missing.items():
        _copy(_file(task.source, path.name), path, digest)
    return folder if missing else None


def _copy(url: str, path: Path, expected: str) -> None:
    digest = hashlib.sha256()
    with os_errors_named(path), replacing(path) as temporary:
        with temporary.open("wb") as out, closing(_blocks(url)) as blocks:
            for block in stoppable(blocks):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != expected:
            raise UserError(
                f"{url}: its SHA-256 is not the manifest's: damaged there, or on the way; "
                "try again, then run `verify` on the source"
            )


def _summary(split: _Split, copied: int) -> StagedSplit:
    manifest = split.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    return StagedSplit(split.folder, manifest.samples, len(manifest.shards), copied, size, manifest.content_hash)
