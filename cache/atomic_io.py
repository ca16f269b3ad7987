"""Files that are whole or not there at all, whatever is killed, full or failing.

Everything in a store is made in a workspace under `<store>/tmp/`, on the same filesystem, fsynced,
read back, and renamed to its place. Other files are written in the same way, beside their place.

Only this file knows how locks and the flags of `open` differ between systems and file systems.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import math
import mmap
import os
import re
import secrets
import shutil
import socket
import stat
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ser.errors import CorruptStore, StoreError, WrongUse

Buffer = bytes | bytearray | memoryview

REPAIR = "run `ser cache verify --repair`, then `ser features` again"
PIECE = 1 << 20  # bytes that fit the processor's cache
# EBADF: over NFS a lock needs the right to write, which another user's file may not give.
_UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ASIDE = ".removing-"  # begins the names of folders that are being removed: no writer knows them
_OURS = re.compile(r"(\.removing-)?[0-9a-f]{16}")  # in `tmp/`; anything else there is not ser's
DAY = 24 * 3600
# Zero where the system has none. Of these flags Windows has O_BINARY alone, and changes line ends
# without it.
_O_DIRECT, _O_DIRECTORY = getattr(os, "O_DIRECT", 0), getattr(os, "O_DIRECTORY", 0)
_O_NOFOLLOW, _O_NONBLOCK = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
PLAIN = _O_NOFOLLOW | _O_NONBLOCK | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
log = logging.getLogger("ser.cache")
_warn_once = functools.cache(log.warning)


@contextlib.contextmanager
def plain_file(path: Path | str, remedy: str = REPAIR) -> Iterator[io.BufferedReader]:
    """A plain file of a store, open for reading.

    Raises `CorruptStore` with the `remedy` if it is missing, a link or a special file, and
    `StoreError` if it cannot be opened or read.
    """
    try:
        with os.fdopen(open_named(path, os.O_RDONLY | _O_NOFOLLOW), "rb") as file:
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


SMALL, LARGE = (
    256 << 20,
    64 << 30,
)  # bytes: more than any description has; more than any table or array has


def open_named(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a plain file that a user named, for reading. Links are followed.

    Raises `OSError` as `os.open` does, and at once for a folder, pipe, socket or device. It is an
    `opener` of `open`.
    """
    descriptor = os.open(path, flags | (PLAIN & ~_O_NOFOLLOW))  # a pipe would wait for a writer
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


def write_file(path: Path, buffers: Iterable[Buffer]) -> tuple[int, str]:
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
        raise StoreError(
            f"{path}: the disk gave back other bytes than were written; check the disk"
        )
    return size, digest.hexdigest()


def _on_disk(path: Path, direct: int = _O_DIRECT) -> bytes:
    """The sha256 of a file, read past the page cache, which stays as it is for the next reader.

    Without O_DIRECT (macOS, Windows, some file systems) the page cache is read, which shows what
    the system was given to write, not what the disk holds.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | PLAIN | direct), "rb", buffering=0) as file:
            size, digest = os.fstat(file.fileno()).st_size, hashlib.sha256()
            page = memoryview(
                mmap.mmap(-1, PIECE)
            )  # aligned: O_DIRECT needs it, and reads that begin at its multiples
            while file.tell() < size and (read := file.readinto(page)):
                digest.update(page[:read])
            return digest.digest()
    except OSError as error:
        if error.errno != errno.EINVAL or not direct:
            raise
        return _on_disk(path, 0)


def write_folder(folder: Path, files: Mapping[str, Iterable[Buffer]]) -> dict[str, tuple[int, str]]:
    """Write files durably, by their paths in a folder that is not published yet, each as
    `write_file` does.
    """
    written = {}
    for name, buffers in files.items():
        for parent in reversed(
            Path(name).parents
        ):  # never the workspace itself, if that has been moved aside
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
    """Make the names in a folder durable. Windows has no call for it: its file system keeps a
    journal of names.
    """
    if not _O_DIRECTORY:
        return
    descriptor = os.open(folder, os.O_RDONLY | _O_DIRECTORY)
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
        os.rename(source, target)  # noqa: PTH104 (Path.rename documents less about folders)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    sync_folder(target.parent)
    return True


def put_files(store: Path, folder: Path, files: Mapping[str, bytes], replace: bool = True) -> None:
    """Make a folder with these files in one step, or put them into an existing one, one after the
    other.

    Readers see the old file or the new one. Unless it may `replace` files, a folder that another
    process has just made stays as it is. Raises `StoreError` if the disk is full or fails.
    """
    needed = sum(map(len, files.values()))
    with (
        explain_disk_errors(f"writing {folder.relative_to(store)}", store, needed),
        workspace(store) as temporary,
    ):
        new = temporary / folder.name
        write_folder(new, {name: [content] for name, content in files.items()})
        if folder.exists() or not move_into_place(new, folder):
            for name in files if replace else ():
                os.replace(new / name, folder / name)  # noqa: PTH105
                sync_folder(folder)


def write_whole(path: Path, *content: Buffer) -> tuple[int, str]:
    """Write or replace a file for a user, durably, through a new file beside it. Returns size and
    sha256.

    A link stays, and its target is replaced; a pipe or a device is written to. Raises `WrongUse` if
    the folder is missing, and `StoreError` if the disk is full or fails; then the old file is
    whole.
    """
    if path.parent.as_posix() in ("/dev", "/dev/fd") or (path.exists() and not path.is_file()):
        whole = b"".join(content)
        return path.write_bytes(whole), hashlib.sha256(whole).hexdigest()
    path = Path(
        os.path.realpath(path)
    )  # unlike `resolve` it accepts links in a circle, which are replaced
    if not path.parent.is_dir():
        raise WrongUse(f"{path.parent}: no such folder; make it first, or name another file")
    new = path.with_name(f".{secrets.token_hex(8)}.part")
    with explain_disk_errors(
        f"writing {path.name}, which is as it was", path.parent, sum(map(len, content))
    ):
        try:
            written = write_file(new, content)
            os.replace(new, path)  # noqa: PTH105
        finally:
            new.unlink(missing_ok=True)
        sync_folder(path.parent)
    return written


@contextlib.contextmanager
def workspace(store: Path) -> Iterator[Path]:
    """A new folder under `<store>/tmp/`, removed at the end. The lock beside it shows that its
    owner is alive.

    Touch it (`os.utime`) during long work: after a day without a change, other hosts may remove it
    as a leftover.
    """
    folder = store / "tmp" / secrets.token_hex(8)
    try:
        with locked(folder.with_suffix(".lock")) as lock:
            os.write(lock, json.dumps({**_here(), "pid": os.getpid()}).encode())
            try:
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:  # the lock is closed: Windows unlinks no open file
        if not folder.exists():  # otherwise its record shows the next process that this one is gone
            folder.with_suffix(".lock").unlink(missing_ok=True)


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


@functools.cache
def _here() -> dict[str, str]:
    """This machine by its name and id, as copies of an image may share one of them, and its boot."""
    files = {"host": "/etc/machine-id", "boot": "/proc/sys/kernel/random/boot_id"}  # Linux's
    ids = {
        key: Path(file).read_text().strip()
        for key, file in files.items()
        if os.access(file, os.R_OK)
    }
    return {"boot": "", **ids, "host": f"{socket.gethostname()} {ids.get('host')}"}


def remove_leftovers(store: Path) -> None:
    """Remove what killed writers left under `tmp/`; not what a live one may hold, or what is not
    ser's.

    Another host's locks may be invisible here, so its folders go when nothing in them has changed
    for a day.
    """
    tmp = store / "tmp"
    for folder in (
        sorted({entry.with_suffix("") for entry in tmp.iterdir()}) if tmp.is_dir() else ()
    ):
        try:
            if _OURS.fullmatch(folder.name) and (
                folder.name.startswith(_ASIDE) or _abandoned(folder)
            ):
                remove_folder(folder, store)
                folder.with_suffix(".lock").unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed (%s)", folder, error.strerror)


def remove_folder(folder: Path, store: Path, on_move: Callable[[], Any] = lambda: False) -> bool:
    """Remove a folder of a store, durably and in one step: it is first moved aside, which a full
    disk allows.

    Then its writer cannot reach it: a deletion would follow a folder that is renamed. `on_move` is
    called after the move (on Windows before it too): it may close what is open there; if it returns
    True the folder is moved back. Returns whether it is gone.
    """
    aside = store / "tmp" / f"{_ASIDE}{secrets.token_hex(8)}"
    try:
        make_folder(aside.parent)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        aside = folder  # there is no room for `tmp/`
    if not _O_DIRECTORY:
        on_move()  # Windows moves no folder in which a file is open
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.rename(folder, aside)  # noqa: PTH104
        if on_move() and move_into_place(aside, folder):  # over NFS open files could not be deleted
            return False
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()
        sync_folder(folder.parent)
    return True


def _abandoned(folder: Path) -> bool:
    """Whether the owner of a folder in `tmp/` is certainly gone, or not of this host and silent for
    a day.

    A lock without a folder is removed: nothing is lost, even if its owner is about to make the
    folder.
    """
    path, owner, free = folder.with_suffix(".lock"), dict[str, Any](), None
    faults = (
        FileNotFoundError,
        BlockingIOError,
        ValueError,
        TypeError,
        RecursionError,
    )  # also of a damaged record
    with contextlib.suppress(*faults), open_lock(path) as (lock, locked_here):
        free = locked_here
        owner = dict(json.loads(os.read(lock, 1000)))
    if free is False:
        return False
    if not os.path.lexists(folder):
        path.unlink(missing_ok=True)
        return False
    if owner.get("host") == _here()["host"] and (free or owner.get("boot") != _here()["boot"]):
        return True
    return time.time() - extent(path, folder)[1] > DAY


def extent(*paths: Path) -> tuple[int, float]:
    """Bytes of files and folders without links, and their last change in seconds since 1970 (now if
    all are gone).
    """
    size, changed = 0, []
    for top in paths:
        inside = [
            Path(root, name) for root, folders, files in os.walk(top) for name in (*folders, *files)
        ]
        for path in (top, *inside):
            with contextlib.suppress(OSError):  # another process has just replaced or removed it
                status = path.lstat()
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
                changed.append(status.st_mtime)
    return size, max(changed, default=time.time())


@contextlib.contextmanager
def explain_disk_errors(doing: str, store: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` of one sentence: what failed, where, and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(store).free if store.exists() else 0
            # Rounded up and down, so that what did not fit never seems to fit.
            up, down = math.ceil((needed or 0) / 1e4) / 100, free // 1e4 / 100
            need = f" ({up:.2f} MB needed, {down:.2f} MB free)" if needed else ""
            remedy = "free some space and run the same command again, what is published stays"
            raise StoreError(f"{store}: the disk is full{need} while {doing}; {remedy}") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreError(
                f"{store}: is not writable ({error.strerror}) while {doing}"
            ) from error
        fault = f"{error.filename or store}: {error.strerror or error} while {doing}"
        raise StoreError(
            f"{fault}; nothing half-written was kept, run the same command again"
        ) from error
