"""How a command ends: one line and an exit code, whatever ended it."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from pipeline.common import signals
from pipeline.common.errors import Interrupted, LostRank, StoppedElsewhere, UserError, one_line


def run_app(app: typer.Typer) -> None:
    """Run a command line. Mistakes become one line and exit code 2; Ctrl-C 130, preemption 75, a lost rank 76."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    before = signals.leave_at_once()
    try:
        code = _run(app)
        signals.end_is_certain(code)
    finally:
        signals.install(before)
    raise SystemExit(code)


def _run(app: typer.Typer) -> int:
    """The exit code of a command, once its one line is told."""
    try:
        try:
            code = app(standalone_mode=False) or 0
        finally:
            signals.leave_at_once()
    except typer.TyperException as mistake:
        message, context = mistake.format_message(), getattr(mistake, "ctx", None)
        if message:  # without one, help was asked for and is shown
            _tell(f"{message} (see {context.command_path} --help)" if context else message)
        return mistake.exit_code
    except (UserError, Interrupted) as stop:
        return _tell(str(stop), getattr(stop, "exit_code", 2))
    except KeyboardInterrupt:
        code = 130
    except LostRank as stop:
        _tell(str(stop), with_rank=False)
        os._exit(stop.exit_code)  # in order, it would wait for the one that is lost
    except StoppedElsewhere as stop:
        return stop.exit_code
    except OSError as error:
        if signalled := _interrupted_before(error):
            return _tell(str(signalled), signalled.exit_code)
        where = f"{error.filename}: " if error.filename else ""
        return _tell(f"{where}{error.strerror or error}")
    if code == 130:  # what Typer makes of Ctrl-C, without a word
        _tell("stopped by Ctrl-C")
    return code


@contextmanager
def importing() -> Iterator[None]:
    """For a command's imports. A signal ends the process: nothing is begun yet, and some libraries swallow it.

    Work begins after the block, and a signal raises an exception there.
    """
    signals.leave_at_once()
    yield
    signals.raise_at_once()


def _interrupted_before(error: BaseException | None) -> Interrupted | None:
    """The signal after which an error occurred, as it does where a terminal that is gone was written to."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error


def _tell(message: str, code: int = 2, *, with_rank: bool = True) -> int:
    rank = os.environ.get("RANK", "0")
    where = f"rank {rank}: " if with_rank and rank.isdecimal() and rank != "0" else ""
    with suppress(OSError):  # the terminal may be gone
        print(f"latentfuse: {where}{one_line(message)}", file=sys.stderr, flush=True)
    return code
