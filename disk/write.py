"""Durable writes: a file is whole or not there at all, whatever is killed, full or failing.

What is written is fsynced and read back from the disk before it gets its name.
"""

import contextlib
import errno
import hashlib
import math
import mmap
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ser.errors import StoreError, WrongUse

from .flags import O_DIRECT, O_DIRECTORY, PLAIN

Buffer = bytes | bytearray | memoryview
PIECE = 1 << 20  # bytes that fit the processor's cache
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


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


def _on_disk(path: Path, direct: int = O_DIRECT) -> bytes:
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
        os.rename(source, target)  # noqa: PTH104 (Path.rename documents less about folders)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    sync_folder(target.parent)
    return True


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
def explain_disk_errors(doing: str, store: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` of one sentence: what failed, where, and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in DISK_FULL:
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
