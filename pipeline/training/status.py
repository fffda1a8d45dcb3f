"""`status.json` in the run folder: how the job stands, for whoever cannot see its exit code.

Some launchers report 1 whatever their ranks returned. A job that was killed leaves it at `running`.
"""

import signal
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

from pipeline.common import files, signals
from pipeline.common.errors import Interrupted, UserError


class Status(AbstractContextManager["Status"]):
    """Around a job, on its main rank: `running`, then `finished`, `stopped` (it resumes) or `failed`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "Status":
        self.write("running", None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.write("finished", 0, None)
        elif isinstance(error, KeyboardInterrupt):
            self.write("stopped", 128 + signal.SIGINT, "stopped by Ctrl-C")
        elif isinstance(error, Interrupted):
            self.write("stopped", error.exit_code, str(error))
        else:
            mistake = isinstance(error, UserError | OSError)
            self.write("failed", 2 if mistake else getattr(error, "exit_code", 1), str(error))

    def write(self, state: str, exit_code: int | None, message: str | None) -> None:
        # Not even a second Ctrl-C leaves `running` behind; a full disk has already stopped the run, and said so.
        with signals.held(), suppress(OSError):
            files.write_json(self.path, {"state": state, "exit_code": exit_code, "message": message})
