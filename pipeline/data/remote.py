"""The bytes of a tar or another file, wherever it is: a path, a URL that fsspec opens, or what a command writes."""

import errno
import os
import re
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, TypeVar

import fsspec

from pipeline.common.errors import UserError
from pipeline.common.processes import end_with_parent

T = TypeVar("T")

BLOCK = 2**20
PATIENCE = 300.0
"""Seconds in which a source must open, and then bring each block: at least 3.5 kB/s."""
BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP's answers after which it is worth asking again, first after 1 s, then after 2, 4, 8 and 16 s."""
# What cat, ssh, curl, aws and gcloud say of a file that is not there; a bucket that may not be listed answers 403.
_NOT_THERE = re.compile(r"(error|HTTP\S*|\():? ?(403|404|410)\b|No such file|NoSuchKey", re.IGNORECASE)
_NOTHING_MATCHES = "matched no objects"


class NotThere(UserError):
    """A file or URL that does not exist, as far as its server tells."""


def blocks(url: str) -> Generator[bytes, None, None]:
    """The bytes in blocks of `BLOCK`, of which the last may be shorter. Close it where it is not read to its end.

    Args:
        url: a path, a URL of file://, http://, https://, s3:// or whatever else fsspec opens, or `pipe:` and a command.

    Raises:
        UserError: naming the URL, when it cannot be opened, fails or is too slow; for a command also when it fails
            after its last byte. `NotThere` where there is no such file.
    """
    with _command(url) if url.startswith("pipe:") else closing(_opened(url)) as stream:
        while block := _in_time(url, partial(_read, stream)):
            yield block


def _read(stream: Any) -> bytes:
    """The next whole block; less only at the end."""
    block = bytearray()
    while len(block) < BLOCK and (part := stream.read(BLOCK - len(block))):
        block += part
    return bytes(block)


def _in_time(url: str, function: Callable[[], T]) -> T:
    """What `function` returns. It runs in a thread of its own, which is left alone after `PATIENCE` seconds."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(PATIENCE)
    except Exception as error:  # each of fsspec's implementations has errors of its own
        if not answer.done():
            reason = f"too slow: less than {BLOCK // 2**20} MiB came in {PATIENCE:g} s"
            raise UserError(f"{url}: cannot be read: {reason}") from None
        raise _failure(url, error) from None


def _opened(url: str) -> Any:
    scheme, separator, path = url.partition("://")
    if not separator or scheme == "file":
        return _in_time(url, lambda: _local(path or url))
    try:
        filesystem, options = _filesystem(scheme)
    except ValueError:
        raise UserError(
            f"{url}: {scheme}:// is not known; give a path, http://, https://, s3:// or pipe:COMMAND"
        ) from None
    except ImportError as error:
        ours = scheme in ("http", "https", "s3")
        hint = "install what it needs: pip install 'latentfuse[remote]'" if ours else str(error)
        raise UserError(f"{url}: {scheme}:// cannot be read yet; {hint}") from None
    return _in_time(url, lambda: _asked_again(lambda: filesystem.open(url, "rb", **options)))


def _local(path: str) -> Any:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a named pipe would wait for its writer
        raise OSError(errno.EINVAL, "not a file")
    return open(path, "rb")


def _filesystem(scheme: str) -> tuple[Any, dict[str, Any]]:
    """fsspec's implementation, and the options with which it opens a file to be read from front to back."""
    if scheme not in ("http", "https"):
        return fsspec.filesystem(scheme, skip_instance_cache=True), {"block_size": 4 * BLOCK}
    import aiohttp

    client = {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30),  # its own ends a transfer after five minutes
        "auto_decompress": False,  # the bytes as they are stored
        "trust_env": True,  # http_proxy, no_proxy
    }
    filesystem = fsspec.filesystem(scheme, client_kwargs=client, skip_instance_cache=True)
    # One request for all of it. Without a size fsspec asks for it first, and takes every failure for a missing file.
    return filesystem, {"block_size": 0, "size": 1, "headers": {"Accept-Encoding": "identity"}}


def _asked_again(ask: Callable[[], Any]) -> Any:
    for attempt in range(5):
        try:
            return ask()
        except Exception as error:
            if getattr(error, "status", None) not in BUSY:
                raise
        time.sleep(2**attempt)
    return ask()


@contextmanager
def _command(url: str) -> Iterator[Any]:
    """What the shell command behind `pipe:` writes. Its process ends with ours, its whole group with the block."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            url.removeprefix("pipe:"),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            bufsize=0,
            start_new_session=True,  # Ctrl-C does not reach it
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
        assert process.stdout is not None
        try:
            yield process.stdout
            if process.wait():
                said.seek(0)
                text = said.read().decode(errors="replace").strip()
                reason = text.splitlines()[-1] if text else f"its command ended with code {process.returncode}"
                # Tools come to the point in their last line, but for gcloud, which ends with the URL.
                missing = _NOT_THERE.search(reason) or _NOTHING_MATCHES in text
                raise (NotThere if missing else UserError)(f"{url}: cannot be read: {reason}")
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stdout.close()


def _failure(url: str, error: Exception) -> UserError:
    remote = "://" in url and not url.startswith("file://")
    absent = isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (403, 404, 410)
    missing = absent or (remote and isinstance(error, PermissionError))
    if absent and remote:
        reason = "no such file"
    elif remote:
        reason = f"{type(error).__name__}: {error}"
    else:
        reason = getattr(error, "strerror", None) or str(error)
    return (NotThere if missing else UserError)(f"{url}: cannot be read: {reason.splitlines()[0][:300]}")
