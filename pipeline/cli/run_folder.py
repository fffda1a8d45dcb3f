"""Whether a run's folder is one that a run can live in: room, permissions, locks, and a clock like this machine's."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.cli.checks import Check

MIN_FREE_GIB = 5.0
"""Checkpoints, events and a bundle of a full-width run with room to spare."""
MOST_CLOCK_SECONDS = 5.0
_TRY_LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def run_folder(folder: Path) -> list[Check]:
    """What a run needs of `folder`; where it is not there yet, of the first folder above that is. Leaves nothing."""
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    if not existing.is_dir():
        return [Check("disk", f"{existing} is a file", "set run_dir to a folder")]
    free = shutil.disk_usage(existing).free / 2**30
    fix = f"free some, or set run_dir elsewhere: a run wants {MIN_FREE_GIB:g} GiB" if free < MIN_FREE_GIB else ""
    disk = Check("disk", f"{free:.0f} GiB free at {existing}", fix)
    try:
        if not os.access(existing, os.W_OK):
            raise PermissionError
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".latentfuse-doctor-") as trial:
            return [disk, _locks(Path(trial.name)), _clock(Path(trial.name))]
    except OSError as error:
        why = f" ({error.strerror})" if error.strerror else ""
        fix = "set run_dir to a folder that you may write to"
        return [Check("disk", f"{existing} cannot be written{why}", fix)]


def _locks(trial: Path) -> Check:
    """Whether a lock, by which a second job in a run's folder is refused, keeps another process of this node out."""
    with trial.open("r+") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Check("locks", f"none at {trial.parent} ({error.strerror})", note=_ONE_JOB)
        other = subprocess.run([sys.executable, "-c", _TRY_LOCK, trial], capture_output=True, check=False)
    if other.returncode == 0:
        return Check("locks", f"those at {trial.parent} keep nobody out", note=_ONE_JOB)
    return Check("locks", f"a second job at {trial.parent} would be refused, on this node")


_ONE_JOB = "nothing will refuse a second job in the same run_dir: see to it that there is none"


def _clock(trial: Path) -> Check:
    before = time.time()
    trial.write_bytes(b"now")
    ahead = trial.stat().st_mtime - before
    if abs(ahead) <= MOST_CLOCK_SECONDS:
        return Check("clock", f"that of {trial.parent} and of this machine agree")
    which = "ahead of" if ahead > 0 else "behind"
    note = "TensorBoard orders what several machines write by their clocks: let both follow one time server"
    return Check("clock", f"that of {trial.parent} is {abs(ahead):.0f} s {which} this machine's", note=note)
