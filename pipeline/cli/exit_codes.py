"""How a command ends: one line and an exit code, whatever ended it."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from pipeline.common import signals
from pipeline.common.errors import Interrupted, LostRank, StoppedElsewhere, UserError, one_line


def run_app(app: typer.Typer) -> None:
    """Run a command line. Mistakes become one line and exit code 2; Ctrl-C 130, preemption 75, a lost rank 76."""
    code: int | None = None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        with signals.listening():
            code = app(standalone_mode=False)
    except typer.TyperException as mistake:
        message, context = mistake.format_message(), getattr(mistake, "ctx", None)
        if message:  # without one, help was asked for and is shown
            _end(f"{message} (see {context.command_path} --help)" if context else message, mistake.exit_code)
        raise SystemExit(mistake.exit_code) from None
    except (UserError, Interrupted) as stop:
        _end(str(stop), getattr(stop, "exit_code", 2))
    except LostRank as stop:
        print(f"latentfuse: {one_line(str(stop))}", file=sys.stderr, flush=True)
        os._exit(stop.exit_code)  # in order, it would wait for the one that is lost
    except StoppedElsewhere as stop:
        raise SystemExit(stop.exit_code) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end(f"{where}{error.strerror or error}", 2)
    if code == 130:  # what Typer makes of Ctrl-C, without a word
        _end("stopped by Ctrl-C", 130)
    raise SystemExit(code)


@contextmanager
def importing() -> Iterator[None]:
    """For a command's imports. A signal ends the process: nothing is begun yet, and some libraries swallow it."""

    def leave(number: int, frame: FrameType | None) -> None:
        stop = signals.interruption(number)
        os.write(2, b"latentfuse: stopped by Ctrl-C\n" if number == signal.SIGINT else f"latentfuse: {stop}\n".encode())
        os._exit(stop.exit_code)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, *signals.PREEMPTIONS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(message: str, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f"rank {rank}: "
    print(f"latentfuse: {where}{one_line(message)}", file=sys.stderr, flush=True)
    raise SystemExit(code)
