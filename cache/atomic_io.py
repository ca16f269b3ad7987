"""Files that are whole or not there at all, whatever is killed, full or failing.

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
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ser.errors import CorruptStore, StoreError

Buffer = bytes | bytearray | memoryview

REPAIR = "run `ser cache verify --repair`, then `ser features` again"
_PIECE = 1 << 20
_UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
log = logging.getLogger("ser.cache")


def open_plain(path: Path | str, remedy: str = REPAIR) -> int:
    """A descriptor to read a plain file from.

    Raises `CorruptStore` if it is missing, a link or a special file, with what to do about it, and `StoreError` if it
    cannot be opened.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptStore(f"{path}: is missing; {remedy}") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise CorruptStore(f"{path}: is a link or a special file; {remedy}") from error
        raise StoreError(f"{path}: cannot be opened ({error.strerror})") from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise CorruptStore(f"{path}: is a link or a special file; {remedy}")


def read_small(path: Path, remedy: str = REPAIR) -> bytes:
    """The content of a small plain file. Raises as `open_plain` does."""
    with os.fdopen(open_plain(path, remedy), "rb") as file:
        try:
            return file.read()
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}); check the disk") from error


SMALL, LARGE = 256 << 20, 64 << 30  # bytes: more than any description has, more than any table or array


def open_named(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A descriptor to read a plain file from that a user named: links are followed, and nothing is waited for.

    Raises `OSError` as opening does, and for a folder, pipe, socket or device. Fits `opener` of `open`.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for a writer
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.ENXIO, "is a directory, pipe, socket or device, not a plain file", str(path))


def read_named(path: Path | str, most: int = SMALL) -> bytes:
    """The content of a plain file that a user named. Raises as `open_named` does, and for more than `most` bytes."""
    with os.fdopen(open_named(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"is larger than {most >> 20} MB", str(path))
        return file.read()


def folders_in(parent: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones."""
    return sorted(entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def write_file(path: Path, buffers: Sequence[Buffer]) -> tuple[int, str]:
    """Write a new file, fsync it and read it back. Returns its size and sha256.

    Raises `StoreError` if the disk gives back other bytes than were written.
    """
    size, digest = 0, hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            size += len(view)
            digest.update(view)
            while len(view):
                view = view[os.write(file.fileno(), view) :]
        os.fsync(file.fileno())
    if _on_disk(path) != digest.digest():
        raise StoreError(f"{path}: the disk gave back other bytes than were written; check the disk")
    return size, digest.hexdigest()


def _on_disk(path: Path) -> bytes:
    """The sha256 of a file as read past the page cache, which stays as it is for the next reader."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, digest = 0, hashlib.sha256()
        page = memoryview(mmap.mmap(-1, _PIECE))  # aligned, as O_DIRECT demands
        read = _PIECE
        while read == _PIECE:
            read = os.preadv(descriptor, [page], at)
            at += read
            digest.update(page[:read])
        return digest.digest()
    finally:
        os.close(descriptor)


def write_folder(folder: Path, files: Mapping[str, Sequence[Buffer]]) -> dict[str, tuple[int, str]]:
    """Write files, by their paths in a folder that nobody sees yet, durably. Returns their sizes and sha256."""
    written = {}
    for name, buffers in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        written[name] = write_file(folder / name, buffers)
    for root, _, _ in os.walk(folder):
        sync_folder(Path(root))
    return written


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
    """Rename a finished folder to its place. False if another process has put one there."""
    make_folder(target.parent)
    try:
        os.rename(source, target)  # noqa: PTH104 (Path.rename says less about what it does to a folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    sync_folder(target.parent)
    return True


def new_folder(store: Path, folder: Path, files: Mapping[str, bytes], inside: str = "") -> bool:
    """Make a folder, with its files and a folder `inside`, in one step. False if another process has just made it."""
    with workspace(store) as temporary:
        make_folder(temporary / folder.name / inside)
        write_folder(temporary / folder.name, {name: [content] for name, content in files.items()})
        return move_into_place(temporary / folder.name, folder)


def replace_file(path: Path, content: bytes, store: Path) -> None:
    """Write `path`, or put new content in its place: readers see the old one or the new one."""
    with workspace(store) as folder:
        write_file(folder / path.name, [content])
        os.replace(folder / path.name, path)  # noqa: PTH105
        sync_folder(path.parent)


@contextlib.contextmanager
def workspace(store: Path) -> Iterator[Path]:
    """A fresh folder under `<store>/tmp/`, removed at the end; a lock beside it says that its owner is alive."""
    make_folder(store / "tmp")
    lock = None
    while lock is None:  # another process may take a lock file that is not locked yet for a leftover, and unlink it
        folder = store / "tmp" / secrets.token_hex(8)
        lock = _lock(folder, new=True)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
        os.close(lock)


def _lock(folder: Path, new: bool) -> int | None:
    """Lock the file beside a folder in `tmp/`. None if another process holds it, or has unlinked it meanwhile.

    A `new` one is held without a lock on a filesystem that has none; leftovers are never removed there.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if new else 0)
    descriptor = os.open(folder.with_suffix(".lock"), flags, 0o644)
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
    except OSError as error:
        if new and error.errno in _UNLOCKABLE:
            return descriptor
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def remove_leftovers(store: Path) -> list[str]:
    """Remove what killed writers left under `tmp/`; what a live process holds stays. Returns the removed names."""
    tmp = store / "tmp"
    removed = []
    for folder in sorted({entry.with_suffix("") for entry in tmp.iterdir()}) if tmp.is_dir() else ():
        try:
            if (lock := _lock(folder, new=False)) is None:
                continue
            try:
                if folder.is_dir() and not folder.is_symlink():
                    shutil.rmtree(folder)
                else:
                    folder.unlink(missing_ok=True)
                folder.with_suffix(".lock").unlink()
                removed.append(folder.name)
            finally:
                os.close(lock)
        except OSError as error:
            log.warning("%s: cannot be removed (%s)", folder, error.strerror)
    return removed


@contextlib.contextmanager
def explain_disk_errors(doing: str, store: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an operating system error into one sentence that says what failed, where, and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(store).free if store.exists() else 0
            # Rounded apart, so that what did not fit never seems to fit.
            up, down = math.ceil((needed or 0) / 1e4) / 100, free // 1e4 / 100
            need = f" ({up:.2f} MB needed, {down:.2f} MB free)" if needed else ""
            remedy = "free some space and run the same command again, what is published stays"
            raise StoreError(f"{store}: the disk is full{need} while {doing}; {remedy}") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreError(f"{store}: is not writable ({error.strerror}) while {doing}") from error
        fault = f"{error.filename or store}: {error.strerror or error} while {doing}"
        raise StoreError(f"{fault}; nothing half-written was kept, run the same command again") from error
