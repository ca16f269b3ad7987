"""Run tasks inline, in spawned processes, or on a dask cluster. Knows no task."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .cluster import Cluster, here, resources
from .processes import in_processes

__all__ = ["Cluster", "cores", "here", "resources", "run"]

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """CPU cores that this process may use: fewer than the machine has, in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    function: Callable[[T], R],
    tasks: Iterable[T],
    workers: int = 1,
    scheduler: str | None = None,
    insecure: bool = False,
    lost: Callable[[T, str], R] | None = None,
) -> Iterator[R]:
    """`function(task)` for every task, results as they come.

    With one worker inline and lazily; with more, in that many spawned processes, each holding one task at a time (so
    `tasks` may be a generator, and is read no further than needed). `function`, tasks and results must pickle.
    `scheduler` names a dask cluster (see `Cluster`) whose workers see the same files; there `lost(task, reason)` gives
    the result of a task that kills whatever worker has it in hand.

    Raises what the function raises, and `SerError` naming the task whose process died. Nothing is left running when
    the iterator ends, fails or is closed.
    """
    if scheduler is not None:
        with Cluster(scheduler, insecure) as cluster:
            yield from cluster.run(function, tasks, lost=lost)
    elif workers <= 1:
        for task in tasks:
            yield function(task)
    else:
        yield from in_processes(function, tasks, workers)
