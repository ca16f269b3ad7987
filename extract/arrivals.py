"""The parts of a feature that come into the store while somebody works on it."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ser.cache.errors import SerError
from ser.cache.layout import PartRecord, read_small
from ser.cache.sealed import unseal


class Arrivals:
    """What is published in `<store>/<feature>/<fingerprint>/` from now on, or beside the parts that are `known`.

    A look lists the folder, and reads each new `part.json` once.
    """

    def __init__(self, folder: Path, known: Iterable[str] | None = None) -> None:
        self.folder = folder / "parts"
        self._known = set(self._names() if known is None else known)

    def new(self) -> Iterator[PartRecord]:
        """What every part says that has come since the last look; `Feature.parts` names those that make no sense."""
        names = self._names() - self._known
        self._known |= names
        for name in names:
            path = self.folder / name / "part.json"
            with contextlib.suppress(SerError):
                yield PartRecord.from_json(unseal(read_small(path), str(path)), str(path))

    def _names(self) -> set[str]:
        try:
            return {name for name in os.listdir(self.folder) if not name.startswith(".")}  # noqa: PTH208 (thousands)
        except FileNotFoundError:
            return set()
