"""A filesystem of a few megabytes, to fill up."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, options: str = "size=4m") -> Iterator[Path]:
    """A filesystem of its own at `folder`, in memory; who may not mount one skips the test."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.decode().strip()}")

    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, but: int = 0) -> Path:
    """Somebody else's file, which leaves so many bytes free."""
    status = os.statvfs(disk)
    free = status.f_bavail * status.f_frsize
    file = disk / "another"
    file.write_bytes(bytes(free - but))
    return file
