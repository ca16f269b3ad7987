"""Workspaces under `<store>/tmp/`, where whatever enters a store is made.

A workspace lies on the filesystem of its store, so that what is finished is renamed to its place. A
lock beside it shows that its owner is alive.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from .faults import explain_disk_errors
from .leftovers import remove_leftovers
from .locks import locked
from .owner import owner_record
from .write import move_into_place, sync_folder, write_folder

# Holds the workspaces beside what lies in no store.
TEMPORARY = ".ser-tmp"


@contextlib.contextmanager
def workspace(store: Path) -> Iterator[Path]:
    """A new folder under `<store>/tmp/`, removed at the end.

    Touch it (`os.utime`) during long work: after a day without a change, other hosts may remove it
    as a leftover.
    """
    folder = store / "tmp" / secrets.token_hex(8)
    lock_file = folder.with_suffix(".lock")

    try:
        with locked(lock_file) as lock:
            os.write(lock, owner_record())
            try:
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        # After the lock is closed, since Windows unlinks no open file. Where the folder could not
        # be removed, the lock's record shows the next process that this one is gone.
        if not folder.exists():
            lock_file.unlink(missing_ok=True)


@contextlib.contextmanager
def workspace_beside(path: Path) -> Iterator[Path]:
    """A new folder on the filesystem of `path`, for what is renamed there when it is finished.

    It lies in `.ser-tmp/` beside the path, with the lock and the owner of any workspace: what
    killed processes left there is removed first. At the end `.ser-tmp/` is gone, unless another
    process works in it.
    """
    place = path.absolute().parent / TEMPORARY
    remove_leftovers(place)

    try:
        with workspace(place) as folder:
            yield folder
    finally:
        for emptied in (place / "tmp", place):
            with contextlib.suppress(OSError):
                emptied.rmdir()


def put_files(store: Path, folder: Path, files: Mapping[str, bytes], replace: bool = True) -> None:
    """Make a folder with these files in one step, or put them into an existing one.

    There they are put one after the other: readers see the old file or the new one. Unless it may
    `replace` files, a folder that another process has just made stays as it is. Raises `StoreError`
    if the disk is full or fails.
    """
    doing = f"writing {folder.relative_to(store)}"
    needed = sum(len(content) for content in files.values())

    with explain_disk_errors(doing, store, needed), workspace(store) as temporary:
        new = temporary / folder.name
        write_folder(new, {name: [content] for name, content in files.items()})

        if not folder.exists() and move_into_place(new, folder):
            return
        if not replace:
            return
        for name in files:
            os.replace(new / name, folder / name)  # noqa: PTH105
            sync_folder(folder)
