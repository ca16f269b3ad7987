"""Whether the disks have room for weights."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from ser.errors import StoreError


def check_room(needed: Mapping[Path, int]) -> None:
    """Raise `StoreError` unless each folder's disk has room for its bytes.

    Folders on one disk share what is free there.
    """
    bytes_on: dict[int, int] = {}
    for folder, size in needed.items():
        if not size:
            continue
        place = _nearest(folder)
        disk = place.stat().st_dev
        bytes_on[disk] = bytes_on.get(disk, 0) + size
        free = shutil.disk_usage(place).free
        if bytes_on[disk] > free:
            raise StoreError(
                f"{folder}: about {bytes_on[disk] / 1e9:.2f} GB of weights will be written and "
                f"{free / 1e9:.2f} GB are free; make room, or let HF_HOME (downloads) or "
                "SER_CACHE (what is converted) name a folder on another disk"
            )


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())
