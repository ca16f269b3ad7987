"""Unfinished files: what becomes a file of a user, under a hidden name beside it.

The name says that it is ser's, and of which machine. Its writer holds a lock on it, so that what a
killed one left is known, and removed by the next one that writes into the same folder.
"""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import stat
import time
from pathlib import Path

from .descriptor_lock import try_lock
from .flags import PLAIN
from .owner import this_machine

_NAME = re.compile(r"\.ser-(?P<machine>[0-9a-f]{8})-[0-9a-f]{16}\.part")

# Between the making of a file and its lock there is a moment.
_MOMENT = 10
# What another machine writes may be locked invisibly for this one.
_DAY = 24 * 3600


def unfinished_name() -> str:
    """A new name for an unfinished file."""
    return f".ser-{_machine()}-{secrets.token_hex(8)}.part"


def is_unfinished(name: str) -> bool:
    """Whether a file's name is that of an unfinished one."""
    return _NAME.fullmatch(name) is not None


@functools.cache
def _machine() -> str:
    return hashlib.sha256(this_machine().host.encode()).hexdigest()[:8]


@functools.cache
def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files of killed writers; once a process for each folder."""
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            match = _NAME.fullmatch(file.name)
            if match:
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(file, match["machine"])


def _remove_if_abandoned(file: Path, machine: str) -> None:
    descriptor = os.open(file, os.O_RDWR | PLAIN)
    try:
        status = os.fstat(descriptor)
        silent = time.time() - status.st_mtime
        is_held = try_lock(descriptor) is False
        patience = _MOMENT if machine == _machine() else _DAY
        if stat.S_ISREG(status.st_mode) and not is_held and silent > patience:
            file.unlink()
    finally:
        os.close(descriptor)
