"""The files of a corpus folder: which there are."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path


def visible(folder: Path, suffix: str) -> list[Path]:
    """The entries of `folder` with that suffix, sorted; none if there is no such folder.

    Without hidden ones, such as the `._*` files that a Mac leaves beside real ones.
    """
    if not folder.is_dir():
        return []

    entries = []
    for entry in folder.iterdir():
        if entry.suffix.lower() == suffix and not entry.name.startswith("."):
            entries.append(entry)
    return sorted(entries)


def walk_files(root: Path, folders: int | None = None) -> Iterator[str]:
    """The files below `root`, or those of its first `folders`, in order, without hidden ones.

    Paths are relative to `root`, with forward slashes. Follows links, and reads each folder once.
    Raises `OSError` for a folder that cannot be read.
    """

    def stop(error: OSError) -> None:
        if not isinstance(error, NotADirectoryError):
            raise error

    seen: set[str] = set()
    walk = os.walk(root, onerror=stop, followlinks=True)
    for folder, subfolders, names in islice(walk, folders):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)

        # What is left in this list, os.walk goes into.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below_root = Path(folder).relative_to(root)
        for name in sorted(names):
            if not name.startswith("."):
                yield (below_root / name).as_posix()
