"""Files that are whole or not there at all, whatever is killed, full or failing.

New things are made in a workspace under `<store>/tmp/`, on the same filesystem, fsynced, read back, and renamed to
where they belong. There is no other way into a store. Other files are written in the same way, beside their place.

Locks and the flags of `open` differ between systems and file systems: here alone.
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
PIECE = 1 << 20  # bytes that the processor's cache holds
# EBADF: over NFS a lock takes the right to write, which another user's file may not give.
_UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ASIDE = ".removing-"  # begins the names of what is being removed: no writer knows them
_OURS = re.compile(r"(\.removing-)?[0-9a-f]{16}")  # in `tmp/`; whatever else lies there is somebody's
DAY = 24 * 3600
# Zero where the system has none. Of these flags Windows has O_BINARY alone, and changes line ends without it.
_O_DIRECT, _O_DIRECTORY = getattr(os, "O_DIRECT", 0), getattr(os, "O_DIRECTORY", 0)
_O_NOFOLLOW, _O_NONBLOCK = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
PLAIN = _O_NOFOLLOW | _O_NONBLOCK | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
log = logging.getLogger("ser.cache")
_warn_once = functools.cache(log.warning)


@contextlib.contextmanager
def plain_file(path: Path | str, remedy: str = REPAIR) -> Iterator[io.BufferedReader]:
    """A plain file of a store, open to be read.

    Raises `CorruptStore` if it is missing, a link or a special file, with what to do about it, and `StoreError` if it
    cannot be opened or read.
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
        raise StoreError(f"{path}: cannot be read ({error.strerror}); check its mode and the disk") from error


def read_small(path: Path | str, remedy: str = REPAIR) -> bytes:
    """The content of a small plain file. Raises as `plain_file` does."""
    with plain_file(path, remedy) as file:
        return file.read()


SMALL, LARGE = 256 << 20, 64 << 30  # bytes: more than any description has, more than any table or array


def open_named(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A descriptor to read a plain file from that a user named: links are followed, and nothing is waited for.

    Raises `OSError` as opening does, and for a folder, pipe, socket or device. Fits `opener` of `open`.
    """
    descriptor = os.open(path, flags | (PLAIN & ~_O_NOFOLLOW))  # a pipe would wait for a writer
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


def read_toml(path: Path, example: str) -> dict[str, Any]:
    """An option that is a TOML file. Raises `WrongUse` with an `example` of what it holds if it is not one."""
    try:
        table = tomllib.loads(read_named(path).decode("utf-8-sig"))
        if "\\u0000" in json.dumps(table, default=str):  # which no path, no name and no pattern can hold
            raise ValueError("a text in it holds a NUL")
        return table
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read ({error.strerror}); write lines such as `{example}` to it") from None
    except (ValueError, RecursionError) as error:
        raise WrongUse(f"{path}: not a TOML file ({error}); write lines such as `{example}`") from None


def folders_in(parent: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones."""
    return sorted(entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))


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
        raise StoreError(f"{path}: the disk gave back other bytes than were written; check the disk")
    return size, digest.hexdigest()


def _on_disk(path: Path, direct: int = _O_DIRECT) -> bytes:
    """The sha256 of a file as read past the page cache, which stays as it is for the next reader.

    Where there is no O_DIRECT (macOS, Windows, some file systems) it is read through the page cache, and then shows
    what the system was given to write, not what the disk holds.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | PLAIN | direct), "rb", buffering=0) as file:
            size, digest = os.fstat(file.fileno()).st_size, hashlib.sha256()
            page = memoryview(mmap.mmap(-1, PIECE))  # aligned, as O_DIRECT demands of it and of where a read begins
            while file.tell() < size and (read := file.readinto(page)):
                digest.update(page[:read])
            return digest.digest()
    except OSError as error:
        if error.errno != errno.EINVAL or not direct:
            raise
        return _on_disk(path, 0)


def write_folder(folder: Path, files: Mapping[str, Iterable[Buffer]]) -> dict[str, tuple[int, str]]:
    """Write files, by their paths in a folder that nobody sees yet, durably, each as `write_file` does."""
    written = {}
    for name, buffers in files.items():
        for inside in reversed(Path(name).parents):  # never the workspace itself, should that have been moved aside
            (folder / inside).mkdir(exist_ok=True)
        written[name] = write_file(folder / name, buffers)
    for root, _, _ in os.walk(folder):
        sync_folder(Path(root))
    return written


def sync_tree(folder: Path) -> None:
    """Make a folder durable with all that it holds, as libraries have written it."""
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Windows has no call for that: its file system keeps a journal of them."""
    if not _O_DIRECTORY:
        return
    descriptor = os.open(folder, os.O_RDONLY | _O_DIRECTORY)
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


def put_files(store: Path, folder: Path, files: Mapping[str, bytes], replace: bool = True) -> None:
    """Make a folder with these files in one step, or put them into the one that is there, one after the other.

    Readers see the old file or the new one. If it is not to `replace` them, a folder that another process has just made
    stays as it is. Raises `StoreError` if the disk is full or fails.
    """
    needed = sum(map(len, files.values()))
    with explain_disk_errors(f"writing {folder.relative_to(store)}", store, needed), workspace(store) as temporary:
        write_folder(begun := temporary / folder.name, {name: [content] for name, content in files.items()})
        if folder.exists() or not move_into_place(begun, folder):
            for name in files if replace else ():
                os.replace(begun / name, folder / name)  # noqa: PTH105
                sync_folder(folder)


def write_whole(path: Path, *content: Buffer) -> tuple[int, str]:
    """Write `path`, or put new content in its place, durably, through a new file beside it: how users get their files.

    A link stays, and what it names is replaced; a pipe or a device is written to. Returns size and sha256. Raises
    `WrongUse` if there is no such folder, and `StoreError` if the disk is full or fails; then the old file is whole.
    """
    if path.parent.as_posix() in ("/dev", "/dev/fd") or (path.exists() and not path.is_file()):
        size = path.write_bytes(whole := b"".join(content))
        return size, hashlib.sha256(whole).hexdigest()
    path = Path(os.path.realpath(path))  # unlike `resolve` it takes links in a circle, which are replaced
    if not path.parent.is_dir():
        raise WrongUse(f"{path.parent}: no such folder; make it first, or name another file")
    begun = path.with_name(f".{secrets.token_hex(8)}.part")
    with explain_disk_errors(f"writing {path.name}, which is as it was", path.parent, sum(map(len, content))):
        try:
            written = write_file(begun, content)
            os.replace(begun, path)  # noqa: PTH105
        finally:
            begun.unlink(missing_ok=True)
        sync_folder(path.parent)
    return written


@contextlib.contextmanager
def workspace(store: Path) -> Iterator[Path]:
    """A fresh folder under `<store>/tmp/`, removed at the end; a lock beside it says that its owner is alive.

    One that is used for long is touched now and then (`os.utime`): after a day, other hosts may take it for a leftover.
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
        if not folder.exists():  # else its record tells the next process that this one is gone
            folder.with_suffix(".lock").unlink(missing_ok=True)


@contextlib.contextmanager
def open_lock(path: Path, flags: int = 0) -> Iterator[tuple[int, bool | None]]:
    """A descriptor of a lock file, and whether it is locked until the end: as `try_lock` says, without waiting.

    Who may write into its folder may lock it, whatever the umask of who made it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | flags | PLAIN, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        descriptor = os.open(path, os.O_RDONLY | PLAIN)  # made by another user's earlier ser
    try:
        if hasattr(os, "fchmod"):
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, path.parent.stat().st_mode & 0o666)
        yield descriptor, try_lock(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file until it is closed. False if another process holds it, None if its file system has no locks."""
    from filelock import lock_descriptor  # 50 ms, which who only reads does not wait for

    try:
        return lock_descriptor(descriptor, blocking=wait)
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
        return None


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[int]:
    """Hold a lock file, which stays, by its descriptor; without a lock on a file system that has none.

    A second process waits for the first, and says what it is `waiting` for, if anything. The lock is that of the file
    that lies there: another process may unlink one before it is locked, or move its folder aside.
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
                if path.parent.is_symlink() and not path.parent.exists():  # a link to a disk that is not mounted
                    raise
            stack.close()
        yield descriptor


@functools.cache
def _here() -> dict[str, str]:
    """This machine, whose images may share a name or an id, and its time since it was started."""
    found = {"host": "/etc/machine-id", "boot": "/proc/sys/kernel/random/boot_id"}  # Linux's
    known = {key: Path(file).read_text().strip() for key, file in found.items() if os.access(file, os.R_OK)}
    return {"boot": "", **known, "host": f"{socket.gethostname()} {known.get('host')}"}


def remove_leftovers(store: Path) -> None:
    """Remove what killed writers left under `tmp/`, not what a live one may hold, or is not ser's.

    Another host's locks may be invisible here: what is not this host's goes when nothing in it has changed for a day.
    """
    tmp = store / "tmp"
    for folder in sorted({entry.with_suffix("") for entry in tmp.iterdir()}) if tmp.is_dir() else ():
        try:
            if _OURS.fullmatch(folder.name) and (folder.name.startswith(_ASIDE) or _abandoned(folder)):
                remove_folder(folder, store)
                folder.with_suffix(".lock").unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed (%s)", folder, error.strerror)


def remove_folder(folder: Path, store: Path, on_move: Callable[[], Any] = lambda: False) -> bool:
    """Remove a folder of a store, durably and in one step: it is moved aside first, which a full disk allows.

    So it is out of its writer's reach: a deletion that has begun in a folder goes on when that is renamed. Then (on
    Windows before it too) `on_move` is called: it may close what is open there, and if it returns True the folder goes
    back. Returns whether it is gone.
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
        if on_move() and move_into_place(aside, folder):  # over NFS what is open could not be deleted
            return False
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()
        sync_folder(folder.parent)
    return True


def _abandoned(folder: Path) -> bool:
    """Whether the owner of a folder in `tmp/` is gone for certain, or not of this host and silent for a day.

    A lock without a folder is removed here: nothing is lost with it, also if its owner is about to make the folder.
    """
    path, owner, free = folder.with_suffix(".lock"), dict[str, Any](), None
    faults = FileNotFoundError, BlockingIOError, ValueError, TypeError, RecursionError  # also of a record that is none
    with contextlib.suppress(*faults), open_lock(path) as (lock, held):
        free = held
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
    """Bytes of files and folders, and when anything in them changed last, in seconds since 1970; links as such."""
    inside = [Path(root, name) for top in paths for root, folders, files in os.walk(top) for name in (*folders, *files)]
    found = []
    for path in (*paths, *inside):
        with contextlib.suppress(OSError):  # another process has just replaced or removed it
            found.append(path.lstat())
    size = sum(one.st_size for one in found if stat.S_ISREG(one.st_mode))
    return size, max((one.st_mtime for one in found), default=time.time())  # by default: all has just gone


@contextlib.contextmanager
def explain_disk_errors(doing: str, store: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an operating system error into one sentence that says what failed, where, and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in _FULL:
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
