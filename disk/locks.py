"""Locks on files, as far as a file system has them."""

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from .flags import PLAIN
from .write import make_folder

# EBADF: over NFS a lock needs the right to write, which another user's file may not give.
_UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
log = logging.getLogger("ser.cache")
_warn_once = functools.cache(log.warning)


@contextlib.contextmanager
def open_lock(path: Path, flags: int = 0) -> Iterator[tuple[int, bool | None]]:
    """A descriptor of a lock file, and whether it is locked until the end: the result of
    `try_lock`.

    Everyone who may write into its folder may lock it, whatever the umask of its maker.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | flags | PLAIN, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        descriptor = os.open(path, os.O_RDONLY | PLAIN)  # an earlier ser of another user made it
    try:
        if hasattr(os, "fchmod"):
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)
        yield descriptor, try_lock(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file until it is closed. False if another process holds it, None if its file
    system has no locks.
    """
    from filelock import lock_descriptor  # 50 ms, which readers need not wait

    try:
        return lock_descriptor(descriptor, blocking=wait)
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
        return None


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[int]:
    """The descriptor of a lock file, which stays, locked to the end; not locked on a file system
    without locks.

    A second process waits for the first, and logs what it is `waiting` for, if given. It is the
    file at that path that is locked: another process may unlink one before it is locked, or move
    its folder aside.
    """
    with contextlib.ExitStack() as stack:
        while True:
            make_folder(path.parent)
            try:
                descriptor, held = stack.enter_context(open_lock(path, os.O_CREAT))
                if held is None and waiting:
                    fault = "%s: its file system has no locks; let no two processes train the same run at once"
                    _warn_once(fault, path.parent.parent)
                if held is False and waiting:
                    log.warning("%s: %s", path.parent, waiting)
                if held is False:
                    try_lock(descriptor, wait=True)
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
            except FileNotFoundError:
                if (
                    path.parent.is_symlink() and not path.parent.exists()
                ):  # a link to a disk that is not mounted
                    raise
            stack.close()
        yield descriptor
