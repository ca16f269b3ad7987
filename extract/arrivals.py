"""The parts of a feature that come into the store while somebody works on it."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ser.cache.errors import SerError
from ser.cache.layout import PartRecord, read_small
from ser.cache.sealed import unseal

SETTLED = 3.0  # seconds after which a folder's time of change says so if it changes again: some clocks tick every two


class Arrivals:
    """What is published in `<store>/<feature>/<fingerprint>/` from now on, or beside the parts that are `known`.

    A look lists the folder, unless it has not changed since the last one, and reads each new `part.json` once.
    """

    def __init__(self, folder: Path, known: Iterable[str] | None = None) -> None:
        self.folder = folder / "parts"
        self._unchanged: int | None = None  # the folder's time of change, where no later change can have the same
        self._known = set(self._listed() if known is None else known)

    def new(self) -> Iterator[PartRecord]:
        """What every part says that has come since the last look; `Feature.parts` names those that make no sense."""
        names = [name for name in self._listed() if name not in self._known and not name.startswith(".")]
        self._known.update(names)
        for name in names:
            path = self.folder / name / "part.json"
            with contextlib.suppress(SerError):
                yield PartRecord.from_json(unseal(read_small(path), str(path)), str(path))

    def _listed(self) -> list[str]:
        """All names in the folder; none at all where it is as it was."""
        begun = time.time()
        try:
            opened = os.open(self.folder, os.O_RDONLY)  # NFS looks at the server when a folder is opened, not at `stat`
        except FileNotFoundError:
            return []
        try:
            changed = os.fstat(opened).st_mtime_ns
            if changed == self._unchanged:
                return []
            self._unchanged = changed if begun - changed / 1e9 > SETTLED else None
            return os.listdir(opened)  # noqa: PTH208 (thousands)
        finally:
            os.close(opened)
