"""Paths that users give, made absolute or expanded without a fault."""

import os
from pathlib import Path


def real_path(path: str | Path) -> Path:
    """The absolute path without links.

    Unlike `Path.resolve` it takes a link that leads to itself, which whoever opens it then hears
    of.
    """
    return Path(os.path.realpath(path))


def expand_user(path: str | Path) -> Path:
    """The path with the user's folder for `~`; as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111
