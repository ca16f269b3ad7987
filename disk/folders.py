"""Folders: what lies in them, how large they are, and how one leaves a store in one step."""

import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .faults import DISK_FULL
from .flags import O_DIRECTORY
from .write import make_folder, move_into_place, sync_folder

# Begins the names, in `tmp/`, of folders that are being removed: no writer knows them.
REMOVING = ".removing-"


class Extent(NamedTuple):
    """How large files are, and when one of them last changed."""

    bytes: int

    changed: float
    """Seconds since 1970."""


def folders_in(parent: Path) -> list[Path]:
    """The folders in a folder, by name, except hidden ones."""
    folders = []
    for entry in parent.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            folders.append(entry)
    return sorted(folders)


def extent(*paths: Path) -> Extent:
    """The extent of files and folders without links; changed now if all are gone."""
    size = 0
    changes = []

    for top in paths:
        for path in _walk(top):
            # Another process may just have replaced or removed it.
            with contextlib.suppress(OSError):
                status = path.lstat()
                changes.append(status.st_mtime)
                if stat.S_ISREG(status.st_mode):
                    size += status.st_size

    return Extent(size, max(changes, default=time.time()))


def _walk(top: Path) -> Iterator[Path]:
    """A path and, if it is a folder, all that is in it."""
    yield top
    for root, folders, files in os.walk(top):
        for name in (*folders, *files):
            yield Path(root, name)


def remove_folder(folder: Path, store: Path, on_move: Callable[[], Any] = lambda: False) -> bool:
    """Remove a folder of a store, durably and in one step. Returns whether it is gone.

    It is first moved aside, which a full disk allows. Then its writer cannot reach it: a deletion
    would follow a folder that is renamed. `on_move` is called after the move (on Windows before it
    too): it may close what is open there; if it returns True the folder is moved back.
    """
    aside = _place_aside(folder, store)
    if not O_DIRECTORY:
        # Windows moves no folder in which a file is open.
        on_move()

    # Another process may be faster.
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)  # noqa: PTH104

        # After the move: over NFS open files could not be deleted.
        if on_move() and move_into_place(aside, folder):
            return False

        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()
        sync_folder(folder.parent)

    return True


def _place_aside(folder: Path, store: Path) -> Path:
    """A new name under `tmp/`; the folder's own if the disk has no room for `tmp/`."""
    aside = store / "tmp" / f"{REMOVING}{secrets.token_hex(8)}"
    try:
        make_folder(aside.parent)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return folder
    return aside
