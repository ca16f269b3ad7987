"""Run folders as a person clears them: which may go, and how one is removed."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from ser.disk.faults import explain_disk_errors
from ser.disk.folders import extent, remove_folder
from ser.disk.locks import open_lock
from ser.disk.paths import real_path
from ser.errors import WrongUse

from .run_folder import CONFIG, SHARED, Run

DAY = 86_400  # seconds


def abandoned(runs: Sequence[Run], days: float) -> list[Run]:
    """The unfinished runs that no process trains now, and unchanged for so many days."""
    left = []
    for run in runs:
        age = time.time() - extent(run.path).changed
        if not run.finished and age > days * DAY and not _in_training(run):
            left.append(run)
    return left


def removable(path: Path) -> Run:
    """The run in a folder that is to be removed.

    Raises `WrongUse` for any other folder, and for a link to one.
    """
    if path.is_symlink() or not (path / CONFIG).is_file():
        raise WrongUse(
            f"{path}: is not a run folder (no {CONFIG}, or a link); name the folders that "
            "`ser runs` lists"
        )
    return Run(real_path(path))


def remove_run(run: Run) -> int:
    """Remove a run's folder in one step: it is moved aside first. Returns its bytes.

    Raises `WrongUse` for one that is being trained or removed, `StoreError` if the disk refuses.
    """
    size = extent(run.path).bytes
    out = run.path.parent
    with explain_disk_errors(f"removing {run.path}", out), contextlib.ExitStack() as lock:
        if not _take_lock(run, lock):
            raise WrongUse(f"{run.path}: is being trained or removed; stop that process first")
        remove_folder(run.path, out / SHARED, on_move=lock.close)
    return size


def _in_training(run: Run) -> bool:
    """Whether a process of this machine trains the run now."""
    with contextlib.ExitStack() as lock:
        return not _take_lock(run, lock)


def _take_lock(run: Run, stack: contextlib.ExitStack) -> bool:
    """Keep others from training the run until the stack is closed; False if one trains it now.

    Without a lock file, as in a copy, there is nothing to hold.
    """
    with contextlib.suppress(FileNotFoundError):
        lock = stack.enter_context(open_lock(run.path / "lock"))
        return lock.held is not False
    return True
