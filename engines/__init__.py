"""Run tasks inline, in processes forked from one that is spawned, or on a dask cluster. Knows no task."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .cluster import Cluster
from .machine import cores, is_out_of_memory
from .processes import in_processes
from .worker_cache import held, here, resources

__all__ = ["Cluster", "cores", "held", "here", "is_out_of_memory", "resources", "run"]

T = TypeVar("T")
R = TypeVar("R")


def run(
    function: Callable[[T], R],
    tasks: Iterable[T],
    workers: int = 1,
    scheduler: str | None = None,
    insecure: bool = False,
    lost: Callable[[T, str], R] | None = None,
) -> Iterator[R]:
    """`function(task)` for every task, results as they come.

    With one worker inline and lazily; with more, in that many processes here, each holding one task at a time (so
    `tasks` may be a generator, and is read no further than needed). `function`, tasks and results must pickle.
    `scheduler` names a dask cluster (see `Cluster`) whose workers see the same files; there `lost(task, reason)` gives
    the result of a task that kills whatever worker has it in hand. What a function takes from `held` stays open for
    the next tasks of the same worker.

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
