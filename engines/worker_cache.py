"""What a worker keeps open from one task to the next: a model takes seconds to load, and a lease may take less.

On a dask cluster a plugin has it, which every worker gets that is there or comes later: the first task that needs a
thing opens it (in `setup` that would keep the worker from answering), and at the end of the run all is let go, so that
a cluster which stays up has its memory back. Elsewhere it is the process's, and ends with it.
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
    from distributed import Worker, WorkerPlugin


def this_worker() -> "Worker | None":
    """The dask worker whose task this thread has in hand."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def here() -> dict[str, Any]:
    """Which dask worker this is: its address, name, host and process; nothing where it is none."""
    if (worker := this_worker()) is None:
        return {}
    return {"worker": worker.address, "name": str(worker.name), "host": socket.gethostname(), "pid": os.getpid()}


def resources() -> dict[str, float]:
    """What this dask worker declares to have, as in `dask worker --resources "GPU=1 CPU=8"`."""
    worker = this_worker()
    return dict(worker.state.total_resources) if worker else {}


T = TypeVar("T")

NAME = "ser"  # of the plugin: a fixed one, so that a run finds what one that was killed left behind, and lets it go
MOST = 2  # things that one worker keeps, such as the passes of features with a model and of those without


@contextlib.contextmanager
def held(key: Any, open: Callable[[], T]) -> Iterator[T]:
    """What `open()` gave the first task of this worker that asked for `key`, which is compared by `==`.

    A thing that is let go is closed, if it has a `close`, when the last task that uses it is done with it.
    """
    with _place().use(key, open) as thing:
        yield thing


@dataclass(eq=False)
class _Thing:
    key: Any
    value: Any
    kept: bool
    users: int = 1

    def close(self) -> None:
        value, self.value = self.value, None
        if hasattr(value, "close"):
            value.close()


class Held:
    """At most `MOST` things; the one that was asked for longest ago makes room."""

    def __init__(self) -> None:
        self._things: list[_Thing] = []
        self._keeps = True
        self._lock = threading.Lock()  # held for a moment only: a worker's heartbeat waits for `let_go`
        self._opening = threading.Lock()  # a dask worker may have several threads: nothing is opened twice

    @contextlib.contextmanager
    def use(self, key: Any, open: Callable[[], T]) -> Iterator[T]:
        """As `held`."""
        with self._opening:
            thing = self._find(key)
            if thing is None:
                self._drop(len(self._things) - MOST + 1)  # before there is a third: memory may hold two only
                thing = self._add(key, open())
        try:
            yield thing.value
        finally:
            with self._lock:
                thing.users -= 1
                over = not thing.users and not thing.kept
            if over:
                thing.close()

    def let_go(self) -> None:
        """Close everything, what is in use when it no longer is; and keep nothing from now on."""
        self._keeps = False
        self._drop(MOST)

    def _find(self, key: Any) -> _Thing | None:
        with self._lock:
            for thing in self._things:
                if thing.key == key:
                    thing.users += 1
                    self._things.remove(thing)
                    self._things.append(thing)
                    return thing
        return None

    def _add(self, key: Any, value: Any) -> _Thing:
        with self._lock:
            thing = _Thing(key, value, self._keeps)
            if thing.kept:
                self._things.append(thing)
        return thing

    def _drop(self, count: int) -> None:
        with self._lock:
            going = self._things[: max(0, count)]
            del self._things[: len(going)]
            for thing in going:
                thing.kept = False
            idle = [thing for thing in going if not thing.users]
        for thing in idle:
            thing.close()


_process = Held()


def _place() -> Held:
    worker = this_worker()
    if worker is None:
        return _process
    found: Any = worker.plugins.get(NAME)
    if found is None:  # the end of another run took it away, or this worker did not answer when it was given
        made = plugin()
        made.setup(worker)
        found = worker.plugins.setdefault(NAME, made)
    return found.held


def plugin() -> "WorkerPlugin":
    """What `Cluster` gives every worker."""
    from distributed import WorkerPlugin

    # A class of its own each time, so that it travels as code: else a worker without ser could not even start.
    class Place(WorkerPlugin):
        def setup(self, worker: "Worker") -> None:
            with contextlib.suppress(ImportError):
                self.held = Held()

        def teardown(self, worker: "Worker") -> None:
            if hasattr(self, "held"):
                self.held.let_go()

    return Place()
