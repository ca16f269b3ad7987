"""What killed writers leave under `<store>/tmp/`, and when it may be removed."""

import contextlib
import logging
import os
import re
import time
from pathlib import Path

from .folders import REMOVING, extent, remove_folder
from .locks import open_lock
from .owner import read_owner, this_machine

# The folders that ser makes in `tmp/`; anything else there is not ser's.
_OURS = re.compile(r"(\.removing-)?[0-9a-f]{16}")

_DAY = 24 * 3600

log = logging.getLogger("ser.cache")


def remove_leftovers(store: Path) -> None:
    """Remove what killed writers left under `tmp/`.

    What a live one may hold stays, and what is not ser's. Another host's locks may be invisible
    here, so its folders go when nothing in them has changed for a day.
    """
    tmp = store / "tmp"
    if not tmp.is_dir():
        return

    folders = {entry.with_suffix("") for entry in tmp.iterdir()}
    for folder in sorted(folders):
        if not _OURS.fullmatch(folder.name):
            continue
        try:
            if folder.name.startswith(REMOVING) or _is_abandoned(folder):
                remove_folder(folder, store)
                folder.with_suffix(".lock").unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed (%s)", folder, error.strerror)


def _is_abandoned(folder: Path) -> bool:
    """Whether a folder's owner is certainly gone, or not of this host and silent for a day.

    A lock without a folder is removed: nothing is lost, even if its owner is about to make the
    folder.
    """
    lock_file = folder.with_suffix(".lock")
    is_ours: bool | None = None
    owner = None

    # There may be no lock, or a pipe in its place.
    with contextlib.suppress(FileNotFoundError, BlockingIOError), open_lock(lock_file) as lock:
        is_ours = lock.held
        owner = read_owner(os.read(lock.descriptor, 1000))

    if is_ours is False:
        return False

    if not os.path.lexists(folder):
        lock_file.unlink(missing_ok=True)
        return False

    machine = this_machine()
    if owner and owner.host == machine.host:
        is_gone = is_ours or owner.boot != machine.boot
        if is_gone:
            return True

    return time.time() - extent(lock_file, folder).changed > _DAY
