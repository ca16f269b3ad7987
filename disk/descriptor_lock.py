"""A lock on an open file, as far as its file system has locks."""

import errno

# EBADF: over NFS a lock needs the right to write, which another user's file may not give.
_UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def try_lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file until it is closed.

    Returns False if another process holds it, None if its file system has no locks.
    """
    # Here, since it takes 50 ms, for which readers need not wait.
    from filelock import lock_descriptor

    try:
        return lock_descriptor(descriptor, blocking=wait)
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
        return None
