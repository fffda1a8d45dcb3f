"""`status.json` in the run folder: how the job stands, for whoever cannot see its exit code.

Some launchers report 1 whatever their ranks returned. A job that was killed leaves it at `running`.
"""

import signal
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.common import files, signals
from pipeline.common.errors import Interrupted, UserError

NAME = "status.json"


class Status(AbstractContextManager["Status"]):
    """Around a job, on its main rank: `finished`, `stopped` (it resumes) or `failed`; `tell` makes it `running`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._progress: dict[str, Any] = {}

    def tell(self, progress: dict[str, Any]) -> None:
        """How far the job is: each value is kept until it is told anew, also when the job ends."""
        self._progress |= progress
        self.write("running", None, None)

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
            files.write_json(self.path, {"state": state, "exit_code": exit_code, "message": message} | self._progress)


def read(run_dir: Path) -> dict[str, Any]:
    """What `Status` has written there.

    Raises:
        UserError: if there is nothing, or something else.
    """
    path = run_dir / NAME
    try:
        told = files.read_json(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name the run folder of a training") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(told, dict) or "state" not in told:
        raise UserError(f"{path}: not the status of a run")
    return told


def as_line(told: dict[str, Any]) -> str:
    """For people: `running  train 1200/8000  0:12:10 left  310.2 images/s  saved: step 1000`."""
    parts = [str(told["state"])]
    if "step" in told:
        parts.append(f"{told['stage']} {told['step']}/{told['total']}")
        if told["state"] == "running":
            parts.append(f"{timedelta(seconds=told['seconds_left'])} left")
        parts += [f"{told['images_per_second']} images/s", f"saved: step {told['saved_step']}"]
    if told.get("message"):
        parts.append(f"exit code {told['exit_code']}: {told['message']}")
    return "  ".join(parts)
