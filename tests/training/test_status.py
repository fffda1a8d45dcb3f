"""status.json, for whoever cannot see the exit code."""

import json
import signal
from pathlib import Path

import pytest
from running import file_size_limit

from pipeline.common.errors import Interrupted, LostRank, UserError
from pipeline.training.status import Status

ENDS: dict[str, tuple[BaseException | None, str, int]] = {
    "well": (None, "finished", 0),
    "preempted": (Interrupted(signal.SIGUSR1), "stopped", 75),
    "Ctrl-C after a step": (Interrupted(signal.SIGINT), "stopped", 130),
    "Ctrl-C at once": (KeyboardInterrupt(), "stopped", 130),
    "a mistake": (UserError("x: wrong"), "failed", 2),
    "a lost rank": (LostRank("lost"), "failed", 76),
    "a bug": (ZeroDivisionError("division"), "failed", 1),
}


@pytest.mark.parametrize("end", ENDS)
def test_it_tells_how_a_job_ended(tmp_path: Path, end: str) -> None:
    error, state, code = ENDS[end]
    path = tmp_path / "status.json"
    status = Status(path)
    try:
        with status:
            status.tell({})
            assert json.loads(path.read_text()) == {"state": "running", "exit_code": None, "message": None}
            if error:
                raise error
    except BaseException as raised:
        assert raised is error  # noqa: PT017 (nothing is swallowed, whatever it is)
    told = json.loads(path.read_text())
    assert (told["state"], told["exit_code"]) == (state, code)
    assert (told["message"] is None) == (error is None)


def test_a_full_disk_does_not_hide_why_a_job_ended(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x: wrong"), file_size_limit(10), Status(tmp_path / "status.json"):
        raise UserError("x: wrong")
