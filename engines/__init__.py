"""Run tasks inline, in processes of this machine, or on a dask cluster (`Cluster`). Knows no task."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .cluster import Cluster
from .machine import cores, is_out_of_memory
from .processes import in_processes
from .worker_cache import cached, here, resources

__all__ = ["Cluster", "cached", "cores", "here", "is_out_of_memory", "resources", "run"]

T = TypeVar("T")
R = TypeVar("R")


def run(function: Callable[[T], R], tasks: Iterable[T], workers: int = 1) -> Iterator[R]:
    """`function(task)` for every task, results as they come.

    With one worker inline and lazily; with more, in that many processes here, each holding one task at a time (so
    `tasks` may be a generator, and is read no further than needed). `function`, tasks and results must pickle.
    What a function takes from `cached` stays open for the next tasks of the same worker.

    Raises what the function raises (`SerError` as itself, others from a process as `RuntimeError` with their
    traceback), and `SerError` naming the task whose process died. Nothing is left running when the iterator ends,
    fails or is closed.
    """
    if workers <= 1:
        return map(function, tasks)
    return in_processes(function, tasks, workers)
