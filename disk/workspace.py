"""Workspaces under `<store>/tmp/`: where whatever enters a store is made, and what killed writers leave.

A workspace lies on the filesystem of its store, so that what is finished is renamed to its place. A
lock beside it shows that its owner is alive.
"""

import contextlib
import functools
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .flags import O_DIRECTORY
from .locks import locked, open_lock
from .write import (
    DISK_FULL,
    explain_disk_errors,
    make_folder,
    move_into_place,
    sync_folder,
    write_folder,
)

_ASIDE = ".removing-"  # begins the names of folders that are being removed: no writer knows them
_OURS = re.compile(r"(\.removing-)?[0-9a-f]{16}")  # in `tmp/`; anything else there is not ser's
DAY = 24 * 3600
log = logging.getLogger("ser.cache")


@contextlib.contextmanager
def workspace(store: Path) -> Iterator[Path]:
    """A new folder under `<store>/tmp/`, removed at the end. The lock beside it shows that its
    owner is alive.

    Touch it (`os.utime`) during long work: after a day without a change, other hosts may remove it
    as a leftover.
    """
    folder = store / "tmp" / secrets.token_hex(8)
    try:
        with locked(folder.with_suffix(".lock")) as lock:
            os.write(lock, json.dumps({**_here(), "pid": os.getpid()}).encode())
            try:
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:  # the lock is closed: Windows unlinks no open file
        if not folder.exists():  # otherwise its record shows the next process that this one is gone
            folder.with_suffix(".lock").unlink(missing_ok=True)


def put_files(store: Path, folder: Path, files: Mapping[str, bytes], replace: bool = True) -> None:
    """Make a folder with these files in one step, or put them into an existing one, one after the
    other.

    Readers see the old file or the new one. Unless it may `replace` files, a folder that another
    process has just made stays as it is. Raises `StoreError` if the disk is full or fails.
    """
    needed = sum(map(len, files.values()))
    with (
        explain_disk_errors(f"writing {folder.relative_to(store)}", store, needed),
        workspace(store) as temporary,
    ):
        new = temporary / folder.name
        write_folder(new, {name: [content] for name, content in files.items()})
        if folder.exists() or not move_into_place(new, folder):
            for name in files if replace else ():
                os.replace(new / name, folder / name)  # noqa: PTH105
                sync_folder(folder)


def remove_leftovers(store: Path) -> None:
    """Remove what killed writers left under `tmp/`; not what a live one may hold, or what is not
    ser's.

    Another host's locks may be invisible here, so its folders go when nothing in them has changed
    for a day.
    """
    tmp = store / "tmp"
    for folder in (
        sorted({entry.with_suffix("") for entry in tmp.iterdir()}) if tmp.is_dir() else ()
    ):
        try:
            if _OURS.fullmatch(folder.name) and (
                folder.name.startswith(_ASIDE) or _abandoned(folder)
            ):
                remove_folder(folder, store)
                folder.with_suffix(".lock").unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed (%s)", folder, error.strerror)


def remove_folder(folder: Path, store: Path, on_move: Callable[[], Any] = lambda: False) -> bool:
    """Remove a folder of a store, durably and in one step: it is first moved aside, which a full
    disk allows.

    Then its writer cannot reach it: a deletion would follow a folder that is renamed. `on_move` is
    called after the move (on Windows before it too): it may close what is open there; if it returns
    True the folder is moved back. Returns whether it is gone.
    """
    aside = store / "tmp" / f"{_ASIDE}{secrets.token_hex(8)}"
    try:
        make_folder(aside.parent)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        aside = folder  # there is no room for `tmp/`
    if not O_DIRECTORY:
        on_move()  # Windows moves no folder in which a file is open
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.rename(folder, aside)  # noqa: PTH104
        if on_move() and move_into_place(aside, folder):  # over NFS open files could not be deleted
            return False
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()
        sync_folder(folder.parent)
    return True


def _abandoned(folder: Path) -> bool:
    """Whether the owner of a folder in `tmp/` is certainly gone, or not of this host and silent for
    a day.

    A lock without a folder is removed: nothing is lost, even if its owner is about to make the
    folder.
    """
    path, owner, free = folder.with_suffix(".lock"), dict[str, Any](), None
    faults = (
        FileNotFoundError,
        BlockingIOError,
        ValueError,
        TypeError,
        RecursionError,
    )  # also of a damaged record
    with contextlib.suppress(*faults), open_lock(path) as (lock, locked_here):
        free = locked_here
        owner = dict(json.loads(os.read(lock, 1000)))
    if free is False:
        return False
    if not os.path.lexists(folder):
        path.unlink(missing_ok=True)
        return False
    if owner.get("host") == _here()["host"] and (free or owner.get("boot") != _here()["boot"]):
        return True
    return time.time() - extent(path, folder)[1] > DAY


@functools.cache
def _here() -> dict[str, str]:
    """This machine by its name and id, as copies of an image may share one of them, and its boot."""
    files = {"host": "/etc/machine-id", "boot": "/proc/sys/kernel/random/boot_id"}  # Linux's
    ids = {
        key: Path(file).read_text().strip()
        for key, file in files.items()
        if os.access(file, os.R_OK)
    }
    return {"boot": "", **ids, "host": f"{socket.gethostname()} {ids.get('host')}"}


def extent(*paths: Path) -> tuple[int, float]:
    """Bytes of files and folders without links, and their last change in seconds since 1970 (now if
    all are gone).
    """
    size, changed = 0, []
    for top in paths:
        inside = [
            Path(root, name) for root, folders, files in os.walk(top) for name in (*folders, *files)
        ]
        for path in (top, *inside):
            with contextlib.suppress(OSError):  # another process has just replaced or removed it
                status = path.lstat()
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
                changed.append(status.st_mtime)
    return size, max(changed, default=time.time())
