"""What a worker process keeps open for its next tasks, such as a model."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# How many things are kept: the extractors of features with a model, and those of features without.
MAX_KEPT = 2


@dataclass(eq=False)
class Kept:
    """Something that is kept.

    It is closed, if it has a `close`, when neither the cache nor a task holds this any more.
    """

    key: Any
    value: Any = None


# The most recently used one is the last.
kept: list[Kept] = []
# A dask worker may have several threads: nothing is opened twice.
_opening = threading.Lock()


@contextlib.contextmanager
def cached(key: Any, open: Callable[[], T]) -> Iterator[T]:
    """The result of `open()` for a `key`, compared by `==`: opened once, and kept for next tasks.

    A model takes seconds to load, and a task may take less. At most `MAX_KEPT` things are kept,
    until the process ends; a run on a dask cluster, whose processes stay, clears them at its start
    and end. What is dropped is closed, if it has a `close`, after the last task that uses it; an
    error in closing is printed, not raised.
    """
    with _opening:
        entry = _take(key) or Kept(key)
        kept.append(entry)
        # Before another is opened: memory may hold no more.
        del kept[:-MAX_KEPT]

        if entry.value is None:
            entry.value = open()
            if hasattr(entry.value, "close"):
                weakref.finalize(entry, entry.value.close).atexit = False
    yield entry.value


def _take(key: Any) -> Kept | None:
    """The entry of a key, taken out of the cache; None if there is none."""
    for entry in list(kept):
        if entry.key == key:
            # It has just been cleared.
            with contextlib.suppress(ValueError):
                kept.remove(entry)
            return entry
    return None


def clear_cache() -> None:
    """Empty this process's cache: what is in use, or being opened, is closed after its last use.

    It never waits, as it runs in a dask worker's event loop.
    """
    kept.clear()
