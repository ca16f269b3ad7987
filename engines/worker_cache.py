"""What a worker keeps open from one task to the next: a model takes seconds to load, and a task may take less.

It belongs to the process and ends with it. On a dask cluster, which stays up, a run empties it at its start and end.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 2  # things that one worker keeps, such as the extractors of features with a model and of those without


@dataclass(eq=False)
class Entry:
    """A thing that is kept, and how many use it: the cache is one, as long as it keeps it."""

    key: Any
    value: Any = None
    users: int = 1


entries: list[Entry] = []  # the one that was asked for last is the last
_lock = threading.Lock()  # held for a moment only: `clear` runs in a dask worker's event loop
_opening = threading.Lock()  # a dask worker may have several threads: nothing is opened twice


@contextlib.contextmanager
def cached(key: Any, open: Callable[[], T]) -> Iterator[T]:
    """What `open()` gave the first task of this worker that asked for `key`, which is compared by `==`.

    At most `MOST` things are kept. What is dropped is closed, if it has a `close`, when the last task that uses it is
    done with it.
    """
    with contextlib.ExitStack() as stack:
        with _opening:
            with _lock:
                entry = next((entry for entry in entries if entry.key == key), None) or Entry(key)
                entry.users += 1
                entries[:] = [*(other for other in entries if other is not entry), entry]
            stack.callback(_release, entry)
            _drop(MOST)  # before there is a third: memory may hold two only
            if entry.value is None:
                entry.value = open()
        yield entry.value


def clear() -> None:
    """Empty this process's cache: what is in use, or is being opened, is closed when its last user is done."""
    _drop(0)


def _drop(keep: int) -> None:
    with _lock:
        going = entries[: max(0, len(entries) - keep)]
        del entries[: len(going)]
    for entry in going:
        _release(entry)


def _release(entry: Entry) -> None:
    with _lock:
        entry.users -= 1
        unused = not entry.users
    if unused and hasattr(entry.value, "close"):
        entry.value.close()
