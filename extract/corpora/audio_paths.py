"""Audio paths as tables write them, and the files that they mean.

Tables come from Windows (`wav\\a.wav`), from disks that ignore case (`a.WAV`), and from Macs, whose
names are in another Unicode form.
"""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from .files import walk_files

# Folders that are searched for a file of the same name.
SEARCHED_FOLDERS = 1000


def one_form(name: str) -> str:
    """A name of a file without case and blanks around it, in one Unicode form."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def is_there(path: Path) -> bool:
    """Whether something is there; False for a path that cannot be, such as one that is too long."""
    return os.path.exists(path)  # noqa: PTH110


class AudioPaths:
    """The files under a folder, found by paths that may be spelled otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Of each folder under the root, the entries by their form.
        self._entries: dict[str, dict[str, list[str]]] = {}

    def find(self, audio: str) -> str:
        """The path of the file that is meant, under the root and with forward slashes.

        It is the path as it stands, or the only one that differs in slashes, case, blanks or
        Unicode form; a path that means no file is returned as it is.
        """
        if self._exists(audio):
            return audio

        folder = ""
        for part in PurePosixPath(audio.replace("\\", "/")).parts:
            path = f"{folder}/{part}" if folder else part
            if not self._exists(path):
                alike = self._entries_of(folder).get(one_form(part), [])
                if len(alike) != 1:
                    return audio
                path = f"{folder}/{alike[0]}" if folder else alike[0]
            folder = path
        return folder

    def _exists(self, path: str) -> bool:
        return is_there(self.root / path)

    def _entries_of(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._entries:
            entries: dict[str, list[str]] = {}
            if (self.root / folder).is_dir():
                for entry in (self.root / folder).iterdir():
                    entries.setdefault(one_form(entry.name), []).append(entry.name)
            self._entries[folder] = entries
        return self._entries[folder]


def files_meant(root: Path, missing: Iterable[str]) -> dict[str, str]:
    """For paths that are not there, the only file of that name elsewhere, or with another ending.

    Coded names are all alike, so nothing is taken for a misspelling.
    """
    by_name: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for path in walk_files(root, SEARCHED_FOLDERS):
        by_name.setdefault(one_form(PurePosixPath(path).name), []).append(path)
        by_stem.setdefault(one_form(PurePosixPath(path).stem), []).append(path)

    meant: dict[str, str] = {}
    for audio in missing:
        pure = PurePosixPath(audio.replace("\\", "/"))
        same_name = by_name.get(one_form(pure.name), [])
        same_stem = by_stem.get(one_form(pure.stem), [])
        for paths in (same_name, same_stem):
            if len(paths) == 1:
                meant.setdefault(audio, paths[0])
    return meant
