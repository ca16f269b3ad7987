"""What a worker keeps open from one task to the next: a model takes seconds to load, and a task may take less.

It belongs to the process and ends with it. On a dask cluster, which stays up, a run empties it at its start and end.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distributed import Worker

T = TypeVar("T")
MOST = 2  # things that one worker keeps, such as the extractors of features with a model and of those without


def this_worker() -> "Worker | None":
    """The dask worker that runs the task of this thread."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def here() -> dict[str, Any]:
    """Which dask worker this is: its address, name, host and process; empty in any other process."""
    if (worker := this_worker()) is None:
        return {}
    return {"worker": worker.address, "name": str(worker.name), "host": socket.gethostname(), "pid": os.getpid()}


def resources() -> dict[str, float]:
    """What this dask worker declares to have, as in `dask worker --resources "GPU=1 CPU=8"`."""
    worker = this_worker()
    return dict(worker.state.total_resources) if worker else {}


@dataclass(eq=False)
class _Entry:
    key: Any
    value: Any
    users: int = 1  # the cache is one, as long as it keeps the value


class WorkerCache:
    """At most `MOST` things; the one that was asked for longest ago makes room."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self._cleared = 0
        self._lock = threading.Lock()  # held for a moment only: `clear` runs in a dask worker's event loop
        self._opening = threading.Lock()  # a dask worker may have several threads: nothing is opened twice

    @contextlib.contextmanager
    def use(self, key: Any, open: Callable[[], T]) -> Iterator[T]:
        """As `cached`."""
        with self._opening:
            with self._lock:
                entry = next((entry for entry in self.entries if entry.key == key), None)
                if entry is not None:
                    entry.users += 1
                    self.entries.sort(key=lambda other: other is entry)
                cleared = self._cleared
            if entry is None:
                self._drop(MOST - 1)  # before there is a third: memory may hold two only
                entry = _Entry(key, open())
                with self._lock:
                    if cleared == self._cleared:
                        entry.users += 1
                        self.entries.append(entry)
        try:
            yield entry.value
        finally:
            self._release(entry)

    def clear(self) -> None:
        """Close everything: what is in use, or is being opened, when its last user is done."""
        with self._lock:
            self._cleared += 1
        self._drop(0)

    def _drop(self, keep: int) -> None:
        with self._lock:
            going = self.entries[: max(0, len(self.entries) - keep)]
            del self.entries[: len(going)]
        for entry in going:
            self._release(entry)

    def _release(self, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            unused = not entry.users
        if unused and hasattr(entry.value, "close"):
            entry.value.close()


CACHE = WorkerCache()


def cached(key: Any, open: Callable[[], T]) -> contextlib.AbstractContextManager[T]:
    """What `open()` gave the first task of this worker that asked for `key`, which is compared by `==`.

    What is dropped is closed, if it has a `close`, when the last task that uses it is done with it.
    """
    return CACHE.use(key, open)


def clear() -> None:
    """Empty this process's cache."""
    CACHE.clear()
