"""Reading with distrust: plain files of a store, and files that a user names.

A link, a pipe, a device or a file too large to be what it claims is refused, never followed or
waited for.
"""

import contextlib
import errno
import io
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ser.errors import CorruptStore, StoreError, WrongUse

from .flags import O_NOFOLLOW, PLAIN
from .memory import name_what_does_not_fit

REPAIR = (
    "run `ser cache verify --repair --store STORE`, "
    "then the `ser features` command that made it again"
)

# Bytes: more than any description has.
SMALL = 256 << 20

# Bytes: more than any table or array has.
LARGE = 64 << 30

TOO_LARGE = "more than this machine's memory"


@contextlib.contextmanager
def plain_file(path: Path | str, remedy: str = REPAIR) -> Iterator[io.BufferedReader]:
    """A plain file of a store, open for reading.

    Raises `CorruptStore` with the `remedy` if it is missing, a link or a special file, and
    `StoreError` if it cannot be opened or read.
    """
    try:
        with os.fdopen(open_named(path, os.O_RDONLY | O_NOFOLLOW), "rb") as file:
            yield file
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptStore(f"{path}: is missing; {remedy}") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise CorruptStore(f"{path}: is a link or a special file; {remedy}") from error
        fault = f"cannot be read ({error.strerror}); check its mode and the disk"
        raise StoreError(f"{path}: {fault}") from error


def read_small(path: Path | str, remedy: str = REPAIR) -> bytes:
    """The content of a small plain file of a store. Raises as `plain_file` does."""
    with plain_file(path, remedy) as file, name_what_does_not_fit(path, StoreError):
        return file.read()


def open_named(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a plain file that a user named, for reading. Links are followed.

    Raises `OSError` as `os.open` does, and at once for a folder, pipe, socket or device: opening a
    pipe would wait for a writer. It is an `opener` of `open`.
    """
    descriptor = os.open(path, flags | (PLAIN & ~O_NOFOLLOW))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor

    os.close(descriptor)
    fault = "is a directory, pipe, socket or device, not a plain file"
    raise OSError(errno.ENXIO, fault, str(path))


def read_named(path: Path | str, limit: int = SMALL) -> bytes:
    """The content of a plain file that a user named.

    Raises as `open_named` does, and for more than `limit` bytes or than the memory holds.
    """
    with os.fdopen(open_named(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"is larger than {limit >> 20} MB", str(path))

        memory = machine_memory()
        if memory is not None and size > memory:
            raise OSError(errno.ENOMEM, f"has {size / 1e9:.0f} GB, {TOO_LARGE}", str(path))
        try:
            return file.read()
        except MemoryError:
            raise OSError(errno.ENOMEM, "does not fit into the memory left", str(path)) from None


def machine_memory() -> int | None:
    """Bytes of memory that this machine has; None where the system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_toml(path: Path, example: str) -> dict[str, Any]:
    """The content of a TOML file.

    Raises `WrongUse` with an `example` of its lines if it is not one.
    """
    try:
        with name_what_does_not_fit(path, WrongUse):
            table = tomllib.loads(read_named(path).decode("utf-8-sig"))
        # No path, name or pattern can hold a NUL.
        if "\\u0000" in json.dumps(table, default=str):
            raise ValueError("a text in it holds a NUL")
    except WrongUse:
        raise
    except OSError as error:
        remedy = f"write lines such as `{example}` to it"
        raise WrongUse(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        remedy = f"write lines such as `{example}`"
        raise WrongUse(f"{path}: not a TOML file ({error}); {remedy}") from None

    return table
