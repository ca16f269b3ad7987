"""Writing so that a kill, a full disk or a failing device leaves either the whole thing or nothing.

New things are made in a workspace under `<store>/tmp/`, on the same filesystem, fsynced, read back, and renamed to
where they belong. There is no other way into a store.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import math
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ser.errors import StoreError

Buffer = bytes | bytearray | memoryview

_PIECE = 1 << 20
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
_UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
log = logging.getLogger("ser.cache")


def write_file(path: Path, buffers: Sequence[Buffer]) -> tuple[int, str]:
    """Write a new file, fsync it, read it back and compare. Returns its size and sha256."""
    with path.open("xb", buffering=0) as file:
        for buffer in buffers:
            _write_all(file.fileno(), memoryview(buffer).cast("B"))
        os.fsync(file.fileno())
    return _read_back(path, buffers)


def _write_all(descriptor: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(descriptor, view) :]


def _read_back(path: Path, buffers: Sequence[Buffer]) -> tuple[int, str]:
    # Past the page cache: what it holds was never in doubt, and what was written stays in it, in the large pages that
    # make the next reader three times as fast.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _compare(path, descriptor, buffers)
    finally:
        os.close(descriptor)


def _compare(path: Path, descriptor: int, buffers: Sequence[Buffer]) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    wanted = [memoryview(buffer).cast("B") for buffer in buffers]
    page = memoryview(mmap.mmap(-1, _PIECE))  # aligned, as O_DIRECT demands
    read = _PIECE
    while read == _PIECE:
        read = os.preadv(descriptor, [page], size)
        size += read
        digest.update(page[:read])
        at = 0
        while at < read and wanted:
            most = min(read - at, len(wanted[0]))
            if bytes(page[at : at + most]) != bytes(wanted[0][:most]):  # memoryviews compare slowly
                break
            at += most
            wanted[0] = wanted[0][most:]
            if not len(wanted[0]):
                wanted.pop(0)
        if at < read:
            break
    if at < read or any(len(view) for view in wanted):
        raise StoreError(f"{path}: the disk gave back other bytes than were written; check the disk")
    return size, digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably. One that is there already is left alone."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)


def move_into_place(source: Path, target: Path) -> bool:
    """Rename a finished folder to its place. False if somebody else has put one there."""
    try:
        os.rename(source, target)  # noqa: PTH104 (Path.rename says less about what it does to a folder)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    sync_folder(target.parent)
    return True


def replace_file(path: Path, content: bytes, store: Path) -> None:
    """Write `path`, or put new content in its place: readers see the old one or the new one."""
    with workspace(store) as folder:
        write_file(folder / path.name, [content])
        os.replace(folder / path.name, path)  # noqa: PTH105
        sync_folder(path.parent)


@contextlib.contextmanager
def workspace(store: Path) -> Iterator[Path]:
    """A fresh folder under `<store>/tmp/`, removed at the end; a lock beside it says that its owner lives."""
    make_folder(store / "tmp")
    folder, lock = _claim(store / "tmp")
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        os.close(lock)


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _claim(tmp: Path) -> tuple[Path, int]:
    while True:
        folder = tmp / secrets.token_hex(8)
        lock = os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        # Between these two lines another process may take the lock file for a leftover and unlink it.
        if _try_lock(lock) and os.fstat(lock).st_nlink:
            return folder, lock
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
        # On a filesystem without locks nobody can tell an owner's death, so nothing is ever swept there.
        return True
    return True


def remove_leftovers(store: Path) -> list[str]:
    """Remove what killed writers left under `tmp/`; what belongs to a living one stays. Returns the removed names."""
    tmp = store / "tmp"
    if not tmp.is_dir():
        return []
    removed = []
    for folder in sorted({entry.with_suffix("") for entry in tmp.iterdir()}):
        try:
            lock = os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            log.warning("%s: cannot be swept (%s)", folder, error.strerror)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                _remove(folder)
                _lock_of(folder).unlink()
                removed.append(folder.name)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                log.warning("%s: cannot be swept (%s)", folder, error.strerror)
        finally:
            os.close(lock)
    return removed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def faults_named(doing: str, store: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an operating system error into one sentence that says what failed, where, and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(store).free if store.exists() else 0
            # Rounded apart, so that what did not fit never looks as if it did.
            need = (
                f" ({math.ceil(needed / 1e4) / 100:.2f} MB needed, {free // 10_000 / 100:.2f} MB free)"
                if needed
                else ""
            )
            raise StoreError(
                f"{store}: the disk is full{need} while {doing}; free some space and run the same command again, "
                "what is published stays"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreError(f"{store}: may not be written to ({error.strerror}) while {doing}") from error
        where = error.filename or store
        raise StoreError(
            f"{where}: {error.strerror or error} while {doing}; nothing half-written was kept, "
            "run the same command again"
        ) from error
