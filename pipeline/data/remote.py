"""The bytes of a tar or another file, wherever it is: a path, a URL, or what a command writes.

WebDataset's own `gopen` has no s3://, keeps to itself what a tool said, and does not see one fail behind its last byte.
"""

import errno
import io
import os
import re
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from pipeline.common.errors import UserError

BLOCK = 2**20
PATIENCE = 300
"""Seconds without a byte after which a source has stalled."""
# No limit on a transfer that has begun: curl would start it again behind what it has written. So `PATIENCE` is ours.
CURL = ("curl", "-gfsSL", "--connect-timeout", "30", "--retry", "30", "--retry-delay", "2")
# What curl, aws, cat and gcloud say of a file that is not there; a bucket that may not be listed answers 403.
_NOT_THERE = re.compile(r"(error|HTTP\S*|\():? ?(403|404|410)\b|No such file|NoSuchKey", re.IGNORECASE)
_NOTHING_MATCHES = "matched no objects"


class NotThere(UserError):
    """A file or URL that does not exist, as far as its server tells."""


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
        assert isinstance(process.stdout, io.RawIOBase)
        pipe = _Pipe(process.stdout)
        reader = io.BufferedReader(pipe, BLOCK)
        try:
            yield reader
            while reader.read(BLOCK):
                pass
        except (UserError, TimeoutError):
            if pipe.stalled:
                raise _failure(url, f"nothing came for {PATIENCE} s") from None
            # What the reader found wrong with the bytes may be for want of the rest.
            if _goes_on(reader) or not process.wait():
                raise
        if process.wait():
            said.seek(0)
            text = said.read().decode(errors="replace").strip()
            raise _failure(url, text or f"its command ended with code {process.returncode}") from None


def _goes_on(reader: io.BufferedReader) -> bool:
    try:
        return bool(reader.read(1))
    except TimeoutError:
        return True


class _Pipe(io.RawIOBase):
    """What a tool writes; TimeoutError where it has stalled."""

    stalled = False

    def __init__(self, pipe: io.RawIOBase) -> None:
        self.pipe = pipe
        self.poll = select.poll()
        self.poll.register(pipe, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if not self.poll.poll(1000 * PATIENCE):
            self.stalled = True
            raise TimeoutError(errno.ETIMEDOUT, f"nothing came for {PATIENCE} s")
        return self.pipe.readinto(buffer)


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
            bufsize=0,
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
