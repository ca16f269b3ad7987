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

REPAIR = "run `ser cache verify --repair`, then `ser features` again"
SMALL = 256 << 20  # bytes: more than any description has
LARGE = 64 << 30  # bytes: more than any table or array has


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
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}); check its mode and the disk"
        ) from error


def read_small(path: Path | str, remedy: str = REPAIR) -> bytes:
    """The content of a small plain file. Raises as `plain_file` does."""
    with plain_file(path, remedy) as file:
        return file.read()


def open_named(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a plain file that a user named, for reading. Links are followed.

    Raises `OSError` as `os.open` does, and at once for a folder, pipe, socket or device. It is an
    `opener` of `open`.
    """
    descriptor = os.open(path, flags | (PLAIN & ~O_NOFOLLOW))  # a pipe would wait for a writer
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(
        errno.ENXIO, "is a directory, pipe, socket or device, not a plain file", str(path)
    )


def read_named(path: Path | str, most: int = SMALL) -> bytes:
    """The content of a plain file that a user named. Raises as `open_named`, and for more than
    `most` bytes.
    """
    with os.fdopen(open_named(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"is larger than {most >> 20} MB", str(path))
        return file.read()


def read_toml(path: Path, example: str) -> dict[str, Any]:
    """The content of a TOML file. Raises `WrongUse` with an `example` of its lines if it is not
    one.
    """
    try:
        table = tomllib.loads(read_named(path).decode("utf-8-sig"))
        if "\\u0000" in json.dumps(table, default=str):  # no path, name or pattern can hold it
            raise ValueError("a text in it holds a NUL")
        return table
    except OSError as error:
        raise WrongUse(
            f"{path}: cannot be read ({error.strerror}); write lines such as `{example}` to it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise WrongUse(
            f"{path}: not a TOML file ({error}); write lines such as `{example}`"
        ) from None


def folders_in(parent: Path) -> list[Path]:
    """The folders in a folder, by name, except hidden ones."""
    return sorted(
        entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
