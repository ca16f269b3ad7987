"""What a worker keeps open from one task to the next: a model takes seconds to load, and a task may take less.

It belongs to the process and ends with it. On a dask cluster, which stays up, a run empties it at its start and end.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 2  # things that one worker keeps, such as the extractors of features with a model and of those without


@dataclass(eq=False)
class Entry:
    """A thing that is kept: closed, if it can be, when neither the cache nor a task has its entry any more."""

    key: Any
    value: Any = None


entries: list[Entry] = []  # the one that was asked for last is the last
_opening = threading.Lock()  # a dask worker may have several threads: nothing is opened twice


@contextlib.contextmanager
def cached(key: Any, open: Callable[[], T]) -> Iterator[T]:
    """What `open()` gave the first task of this worker that asked for `key`, which is compared by `==`.

    At most `MOST` things are kept. What is dropped is closed, if it has a `close`, when the last task that uses it is
    done with it; a fault in closing is printed, not raised.
    """
    with _opening:
        entry = next((one for one in entries if one.key == key), None) or Entry(key)
        with contextlib.suppress(ValueError):  # it is new, or was cleared in this moment
            entries.remove(entry)
        entries.append(entry)
        del entries[:-MOST]  # before there is a third: memory may hold two only
        if entry.value is None:
            entry.value = open()
            if hasattr(entry.value, "close"):
                weakref.finalize(entry, entry.value.close).atexit = False
    yield entry.value


def clear() -> None:
    """Empty this process's cache: what is in use, or is being opened, is closed when its last user is done.

    It waits for nothing: it runs in a dask worker's event loop.
    """
    entries.clear()
