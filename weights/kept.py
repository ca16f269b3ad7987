"""Checkpoints that ser has converted, in its own cache: `converted/MODEL/COMMIT` there.

The cache is the folder that SER_CACHE names, or `ser` in the user's own (`~/.cache/ser` on Linux).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from ser.disk.paths import expand_user


@dataclass(frozen=True)
class KeptCheckpoint:
    """A model that was converted from one commit of its repository."""

    model: str
    """Its Hugging Face id."""
    path: Path
    """The folder of its safetensors."""


def ser_cache() -> Path:
    """The folder of what ser keeps for its user, whatever the store."""
    named = os.environ.get("SER_CACHE")
    if named:
        return expand_user(named).absolute()
    return platformdirs.user_cache_path("ser", appauthor=False)


def place_of(model: str, commit: str) -> Path:
    """Where a model, converted from this commit of its repository, is or will be."""
    return _folder_of(model) / commit


def find_kept(model: str) -> Path | None:
    """The folder of a model that was converted before, from the newest commit; None if it was not.

    `model` is a valid Hugging Face id.
    """
    newest = None
    for path in _commits(_folder_of(model)):
        if newest is None or path.stat().st_mtime > newest.stat().st_mtime:
            newest = path
    return newest


def list_kept() -> list[KeptCheckpoint]:
    """Every checkpoint that was converted, by model."""
    kept = []
    for of_model in sorted(_entries(ser_cache() / "converted")):
        # An id holds no "--" of its own.
        model = of_model.name.replace("--", "/")
        for path in sorted(_commits(of_model)):
            kept.append(KeptCheckpoint(model, path))
    return kept


def _folder_of(model: str) -> Path:
    return ser_cache() / "converted" / model.replace("/", "--")


def _commits(folder: Path) -> list[Path]:
    """The whole checkpoints in the folder of a model: what is unfinished has a hidden name."""
    return [path for path in _entries(folder) if (path / "config.json").is_file()]


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder: nothing where there is none, or where it may not be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
