"""Tasks on dask.distributed: a small window of leases on a cluster whose workers come, die and come back.

A task is a lease, not a message: the function must be idempotent and leave its work where all can see it, and what
travels is the task and a small result. Dask gives a dead worker's tasks to another one, and blames every task that was
near too many deaths. Here nobody is condemned for that: the blamed are tried again one at a time, alone on the whole
cluster, cut in two as often as they kill, until what is left kills by itself.
"""

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ser.cache.errors import SerError

from .crew import LOOK, Needs
from .processes import task_name

if TYPE_CHECKING:
    from distributed import Future

    from .cluster import Cluster

T = TypeVar("T")
R = TypeVar("R")

PER_THREAD = 3  # tasks in hand per worker thread: one at work and the next ones there already


class Died(Exception):
    """What a task yields that has killed its workers; its message says how often."""


class _Forgotten(Exception):
    """Dask no longer has a task's result, as after a restart: a lease is taken anew."""


@dataclass
class Window(Generic[T, R]):
    """The arguments of `Cluster.run`."""

    cluster: "Cluster"
    function: Callable[[T], R]
    needs: Callable[[T], Needs]
    split: Callable[[T], list[T] | None] | None
    lost: Callable[[T, str], R] | None
    meanwhile: Callable[[], None]

    def run(self, tasks: Iterable[T]) -> Iterator[R]:
        """The results as they come: first of all tasks, then of those that died, one by one."""
        suspects: deque[T] = deque()
        for task, result in self._each(tasks):
            if isinstance(result, Died):
                suspects.append(task)
            else:
                yield result
        while suspects:
            task = suspects.popleft()
            [(_, result)] = self._each([task])
            if not isinstance(result, Died):
                yield result
            elif (pieces := self.split(task) if self.split else None) is not None:
                suspects.extendleft(reversed(pieces))
            elif self.lost:
                yield self.lost(task, str(result))
            else:
                raise SerError(f"{result} on {task_name(task)}; what was finished is kept")

    def _each(self, tasks: Iterable[T]) -> Iterator[tuple[T, R | Died]]:
        """Each task with its result or its death."""
        cluster, remaining = self.cluster, iter(tasks)
        landed: SimpleQueue[Future] = SimpleQueue()
        flying: dict[Any, tuple[T, Needs, Future]] = {}  # by dask's key
        lonely: float | None = None  # since when nobody is there who could do any of it

        def launch(task: T) -> None:
            needs = self.needs(task)
            future = cluster.submit(self.function, task, needs)
            flying[future.key] = (task, needs, future)
            future.add_done_callback(landed.put)

        try:
            while True:
                for task in islice(remaining, max(0, PER_THREAD * cluster.crew.threads - len(flying))):
                    launch(task)
                if not flying:
                    return
                self.meanwhile()
                try:
                    key = landed.get(timeout=LOOK).key
                except Empty:
                    able = any(cluster.crew.able(needs) for _, needs, _ in flying.values())
                    lonely = None if able else lonely or time.monotonic()
                    if lonely and time.monotonic() - lonely > cluster.patience:
                        raise cluster.deserted(next(iter(flying.values()))[1]) from None
                    continue
                lonely = None
                task, _, future = flying.pop(key)
                try:
                    result = self._result(task, future)
                except _Forgotten:
                    launch(task)
                else:
                    future.release()  # else the scheduler keeps every lease until Python collects garbage
                    yield task, result
        finally:
            cluster.cancel([future for _, _, future in flying.values()])

    def _result(self, task: T, future: "Future") -> R | Died:
        from distributed import CancelledError, KilledWorker

        fault: BaseException | None
        if future.status == "error":
            fault = future.exception()
        elif future.status != "finished":
            self.cluster.crew.workers(anew=True)
            raise _Forgotten
        else:
            try:
                return future.result(timeout=self.cluster.patience)
            # Its worker died before it could be fetched. UnboundLocalError: what distributed makes of a cancellation.
            except (CancelledError, TimeoutError, OSError, UnboundLocalError):
                self.cluster.crew.workers(anew=True)
                raise _Forgotten from None
            except KilledWorker as killed:
                fault = killed
        if isinstance(fault, KilledWorker):
            return Died(f"the process that computes it dies, {fault.allowed_failures + 1} times in a row")
        raise fault if isinstance(fault, SerError) else self._foreign(task, fault)

    def _foreign(self, task: T, fault: BaseException | None) -> Exception:
        told = "".join(traceback.format_exception(fault))
        if "ModuleNotFoundError: No module named 'ser" in told:
            return SerError(f"the dask workers at {self.cluster.address} have no ser: install the same version there")
        return RuntimeError(f"in a dask worker, on {task_name(task)}:\n{told}")
