"""What ends a command early: a mistake of the user, a signal, or another rank."""

import signal

MOST_SHOWN = 1500
"""Characters of a message; of a longer one the middle is left out."""


class UserError(Exception):
    """A mistake of the user: one line that names the key or file, the value, and the fix.

    The command line prints the message without a traceback and exits with code 2.
    """


class Interrupted(BaseException):
    """A request to stop. `exit_code` is what the process returns.

    Not an Exception: it is raised wherever the signal finds the process, libraries' `except Exception` included.
    """

    REQUEUE = 75
    """After SIGTERM, SIGUSR1 or the file STOP: the run is saved, not finished, and may be queued again."""

    def __init__(self, number: int, cause: str | None = None) -> None:
        self.number = number
        self.exit_code = 130 if number == signal.SIGINT else self.REQUEUE
        super().__init__(f"stopped by {cause or signal.Signals(number).name}; the same command resumes")


class LostRank(Exception):
    """Another rank, or a worker of this one, died or cannot be reached.

    The newest checkpoint is whole; the run may be queued again.
    """

    exit_code = 76


class StoppedElsewhere(Exception):
    """Another rank has stopped all of them, and says why; this one ends with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"stopped by another rank with exit code {exit_code}")


def one_line(message: str) -> str:
    """A message as one line of a terminal: what cannot be printed, as the line breaks in a file's name, is escaped."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in message)
    cut = MOST_SHOWN // 2
    return shown if len(shown) <= MOST_SHOWN else f"{shown[:cut]} ... {shown[-cut:]}"
