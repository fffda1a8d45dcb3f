"""What ends a command early: a mistake of the user, or a signal."""

import signal


class UserError(Exception):
    """A mistake of the user: one line that names the key or file, the value, and the fix.

    The command line prints the message without a traceback and exits with code 2.
    """


class Interrupted(Exception):
    """A signal asked the run to stop, and it has stopped in order. `exit_code` is what the process returns."""

    REQUEUE = 75
    """After SIGTERM or SIGUSR1 (preemption): the run is saved, not finished, and may be queued again."""

    def __init__(self, number: int) -> None:
        self.exit_code = 130 if number == signal.SIGINT else self.REQUEUE
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command resumes")
