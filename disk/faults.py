"""What a failing disk means for a user, in one sentence: what failed, where, and what to do."""

import contextlib
import errno
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ser.errors import SerError, StoreError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FEW_BYTES = 1 << 20
FEW_INODES = 1000
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def explain_disk_errors(doing: str, store: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` of one sentence.

    `doing` is what failed, such as "writing a part"; `needed` is how many bytes it needed.
    """
    try:
        yield
    except SerError:
        raise
    except OSError as error:
        raise StoreError(_explain(error, doing, store, needed)) from error
    except Exception as error:
        known = _as_os_error(error)
        if known is None:
            raise
        raise StoreError(_explain(known, doing, store, needed)) from error


def _as_os_error(error: BaseException) -> OSError | None:
    """The fault of the system behind one of a library written in Rust, such as safetensors."""
    match = re.search(r"\bos error (\d+)|\bOs \{ code: (\d+)", str(error))
    if match is None:
        return None
    number = int(match[1] or match[2])
    return OSError(number, os.strerror(number))


def _explain(error: OSError, doing: str, store: Path, needed: int | None) -> str:
    if error.errno in DISK_FULL:
        again = "run the same command again, what is published stays"
        if error.errno == errno.EDQUOT:
            fault = "your quota on this disk is used up"
            return f"{store}: {fault} while {doing}; free some space of yours and {again}"
        if _lacks_inodes(store, needed or 0):
            fault = "the disk has room for no more files: its inodes are used up, whatever is free"
            return f"{store}: {fault}, while {doing}; remove some files and {again}"
        space = _compare_space(store, needed) if needed else ""
        return f"{store}: the disk is full{space} while {doing}; free some space and {again}"

    if error.errno == errno.EFBIG:
        fault = "a file may not be that large, by a limit of this shell (`ulimit -f`) or the disk"
        return f"{store}: {fault}, while {doing}; raise it and run the same command again"

    if error.errno in _NOT_WRITABLE:
        return f"{store}: is not writable ({error.strerror}) while {doing}"

    fault = f"{error.filename or store}: {error.strerror or error} while {doing}"
    return f"{fault}; nothing half-written was kept, run the same command again"


def _lacks_inodes(folder: Path, needed: int) -> bool:
    """Whether the disk has the bytes, but no inodes for more files.

    A few are free again: those of the files that were removed after the fault.
    """
    if not hasattr(os, "statvfs"):
        return False

    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < needed + FEW_BYTES:
        return False
    # Some file systems count no inodes.
    return status.f_files > 0 and status.f_favail < FEW_INODES


def _compare_space(store: Path, needed: int) -> str:
    """What was needed and what is free, in MB, rounded up and down.

    So what did not fit never seems to fit.
    """
    free = shutil.disk_usage(store).free if store.exists() else 0
    needed_mb = math.ceil(needed / 1e4) / 100
    free_mb = free // 1e4 / 100
    return f" ({needed_mb:.2f} MB needed, {free_mb:.2f} MB free)"
