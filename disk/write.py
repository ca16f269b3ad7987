"""Durable writes: a file is whole or not there at all, whatever is killed, full or failing.

What is written is fsynced and read back from the disk before it gets its name.
"""

import contextlib
import errno
import hashlib
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ser.errors import StoreError, WrongUse

from .descriptor_lock import try_lock
from .faults import explain_disk_errors
from .flags import O_DIRECT, O_DIRECTORY, PLAIN
from .unfinished import remove_unfinished, unfinished_name

Buffer = bytes | bytearray | memoryview

# Bytes that fit the processor's cache.
PIECE = 1 << 20


class Written(NamedTuple):
    """A file that is safe on disk."""

    size: int
    sha256: str


def write_file(path: Path, buffers: Iterable[Buffer], lock: bool = False) -> Written:
    """Write a new file, fsync it and read it back; meanwhile it may be locked.

    Raises `StoreError` if the disk gives back other bytes than were written.
    """
    size = 0
    digest = hashlib.sha256()

    with path.open("xb", buffering=0) as file:
        if lock:
            try_lock(file.fileno())
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            size += len(view)
            digest.update(view)
            while len(view):
                view = view[os.write(file.fileno(), view) :]
        os.fsync(file.fileno())

        if _digest_on_disk(path) != digest.digest():
            fault = "the disk gave back other bytes than were written; check the disk"
            raise StoreError(f"{path}: {fault}")
        if lock:
            # Whoever finds it in the moment before it gets its name takes it for a new one.
            os.utime(path)
    return Written(size, digest.hexdigest())


def _digest_on_disk(path: Path) -> bytes:
    """The sha256 of a file, read past the page cache, which stays as it is for the next reader.

    Without O_DIRECT (macOS, Windows, some file systems) the page cache is read, which shows what
    the system was given to write, not what the disk holds.
    """
    if O_DIRECT:
        try:
            return _digest(path, O_DIRECT)
        except OSError as error:
            # EINVAL: this file system has no O_DIRECT.
            if error.errno != errno.EINVAL:
                raise
    return _digest(path, 0)


def _digest(path: Path, flags: int) -> bytes:
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | PLAIN | flags)

    with os.fdopen(descriptor, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        # O_DIRECT needs aligned memory, which mmap gives, and reads that begin at its multiples.
        page = memoryview(mmap.mmap(-1, PIECE))

        while file.tell() < size:
            count = file.readinto(page)
            if not count:
                break
            digest.update(page[:count])

    return digest.digest()


def write_folder(folder: Path, files: Mapping[str, Iterable[Buffer]]) -> dict[str, Written]:
    """Write files durably, by their paths in a folder that is not published yet.

    Each is written as `write_file` does.
    """
    written = {}
    for name, buffers in files.items():
        # Never the workspace itself, which may have been moved aside.
        for parent in reversed(Path(name).parents):
            (folder / parent).mkdir(exist_ok=True)
        written[name] = write_file(folder / name, buffers)

    for root, _, _ in os.walk(folder):
        sync_folder(Path(root))
    return written


def sync_tree(folder: Path) -> None:
    """Make a folder that a library wrote durable, with everything in it."""
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Windows has no call for it: its file system keeps a journal of names.
    """
    if not O_DIRECTORY:
        return

    descriptor = os.open(folder, os.O_RDONLY | O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably, if they are missing."""
    if folder.is_dir():
        return

    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)


def move_into_place(source: Path, target: Path) -> bool:
    """Rename a finished folder to its place. False if another process has put one there."""
    make_folder(target.parent)
    try:
        # Path.rename documents less about folders.
        os.rename(source, target)  # noqa: PTH104
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False

    sync_folder(target.parent)
    return True


def write_whole(path: Path, *content: Buffer) -> Written:
    """Write or replace a file for a user, durably, through a new file beside it.

    A link stays, and its target is replaced; a pipe or a device is written to. Raises `WrongUse` if
    the folder is missing, and `StoreError` if the disk is full or fails; then the old file is
    whole.
    """
    if _is_device(path):
        whole = b"".join(content)
        size = path.write_bytes(whole)
        return Written(size, hashlib.sha256(whole).hexdigest())

    # Unlike `resolve` it accepts links in a circle, which are replaced.
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise WrongUse(f"{path.parent}: no such folder; make it first, or name another file")

    remove_unfinished(path.parent)
    new = path.with_name(unfinished_name())
    doing = f"writing {path.name}, which is as it was"
    needed = sum(len(buffer) for buffer in content)

    with explain_disk_errors(doing, path.parent, needed):
        try:
            written = write_file(new, content, lock=True)
            os.replace(new, path)  # noqa: PTH105
        finally:
            new.unlink(missing_ok=True)
        sync_folder(path.parent)
    return written


def _is_device(path: Path) -> bool:
    """Whether a path leads to a pipe, a device or what the shell has opened, not to a file."""
    if path.parent.as_posix() in ("/dev", "/dev/fd"):
        return True
    return path.exists() and not path.is_file()
