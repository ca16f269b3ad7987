"""Locks on files, as far as a file system has them."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .descriptor_lock import try_lock
from .flags import PLAIN
from .write import make_folder

log = logging.getLogger("ser.cache")
_warn_once = functools.cache(log.warning)


class OpenLock(NamedTuple):
    """An open lock file."""

    descriptor: int

    held: bool | None
    """Whether this process holds it: False: another does; None: its file system has no locks."""


@contextlib.contextmanager
def open_lock(path: Path, flags: int = 0) -> Iterator[OpenLock]:
    """A lock file, locked to the end if no other process holds it.

    Everyone who may write into its folder may lock it, whatever the umask of its maker.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | flags | PLAIN, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        # Another user's, whose mode is not set below: not yet, or the file system has no modes.
        descriptor = os.open(path, os.O_RDONLY | PLAIN)

    try:
        if hasattr(os, "fchmod"):
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)
        yield OpenLock(descriptor, try_lock(descriptor))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[int]:
    """The descriptor of a lock file, which stays, locked to the end.

    It is not locked on a file system without locks. A second process waits for the first, and logs
    what it is `waiting` for, if that is said.
    """
    with contextlib.ExitStack() as stack:
        while True:
            make_folder(path.parent)
            try:
                lock = stack.enter_context(open_lock(path, os.O_CREAT))
                _wait_for(lock, path, waiting)

                # It is the file at that path that counts: another process may unlink one before it
                # is locked, or move its folder aside.
                if os.path.samestat(os.fstat(lock.descriptor), path.stat()):
                    break
            except FileNotFoundError:
                leads_nowhere = path.parent.is_symlink() and not path.parent.exists()
                if leads_nowhere:
                    # To a disk that is not mounted.
                    raise
            stack.close()

        yield lock.descriptor


def _wait_for(lock: OpenLock, path: Path, waiting: str) -> None:
    """Wait until another process gives a lock back, if one holds it."""
    if lock.held is None and waiting:
        fault = "%s: its file system has no locks; let no two processes do the same work at once"
        _warn_once(fault, path.parent.parent)

    if lock.held is False:
        if waiting:
            log.warning("%s: %s", path.parent, waiting)
        try_lock(lock.descriptor, wait=True)
