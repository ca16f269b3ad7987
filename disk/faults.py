"""What a failing disk means for a user, in one sentence: what failed, where, and what to do."""

import contextlib
import errno
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from ser.errors import StoreError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def explain_disk_errors(doing: str, store: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` of one sentence.

    `doing` is what failed, such as "writing a part"; `needed` is how many bytes it needed.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(_explain(error, doing, store, needed)) from error


def _explain(error: OSError, doing: str, store: Path, needed: int | None) -> str:
    if error.errno in DISK_FULL:
        space = _compare_space(store, needed) if needed else ""
        remedy = "free some space and run the same command again, what is published stays"
        return f"{store}: the disk is full{space} while {doing}; {remedy}"

    if error.errno in _NOT_WRITABLE:
        return f"{store}: is not writable ({error.strerror}) while {doing}"

    fault = f"{error.filename or store}: {error.strerror or error} while {doing}"
    return f"{fault}; nothing half-written was kept, run the same command again"


def _compare_space(store: Path, needed: int) -> str:
    """What was needed and what is free, in MB, rounded up and down.

    So what did not fit never seems to fit.
    """
    free = shutil.disk_usage(store).free if store.exists() else 0
    needed_mb = math.ceil(needed / 1e4) / 100
    free_mb = free // 1e4 / 100
    return f" ({needed_mb:.2f} MB needed, {free_mb:.2f} MB free)"
