"""Tasks on dask.distributed: a small window of leases on a cluster whose workers come, die and come back.

A task is a lease, not a message: the function must be idempotent and leave its work where all can see it, and what
travels is the task and a small result. Dask gives a dead worker's tasks to another one, and blames every task that was
near too many deaths. Here nobody is condemned for that: the blamed are tried again one at a time, alone on the whole
cluster, cut in two as often as they kill, until what is left kills by itself.
"""

import contextlib
import logging
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ser.cache.errors import SerError, WrongUse

from .address import checked_address, local_workers
from .processes import task_name

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
R = TypeVar("R")
Needs = Mapping[str, float]  # resource → how much of it a task takes, as in `dask worker --resources "GPU=1"`

PER_THREAD = 3  # tasks in hand per worker thread: one at work and the next ones there already
LOOK = 2.0  # seconds between two looks at who is there
# A cluster of its own forgives a task two deaths (dask: 3), waits for a worker that dies again and again (dask closes
# after 15 s what restarts it), and keeps the last 10 messages to each worker (dask 1000, and each holds a whole lease).
OWN = {
    "distributed.scheduler.allowed-failures": 2,
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.admin.low-level-log-length": 10,
}


class Died(Exception):
    """What a task yields that has killed its workers; its message says how often."""


class _Forgotten(Exception):
    """Dask no longer has a task's result, as after a restart: a lease is taken anew."""


class Cluster:
    """A dask cluster, held for one run: a running one by its address or scheduler file, or `local:N` of its own.

    A cluster of its own has N processes of one thread, listens on 127.0.0.1 alone, and is gone when this is closed.
    `patience` is how many seconds a cluster may be without any worker that could do what is left.
    """

    def __init__(self, scheduler: str, insecure: bool = False, patience: float = 60.0) -> None:
        self.own = local_workers(scheduler)
        self.address = scheduler if self.own else checked_address(scheduler, insecure)
        self.patience = patience
        self._workers: dict[str, dict[str, Any]] = {}
        self._looked = -LOOK
        self._stack = contextlib.ExitStack()
        self._client: Client

    def __enter__(self) -> "Cluster":
        try:
            import distributed  # noqa: F401
        except ImportError:
            raise SerError("--scheduler needs dask: pip install 'ser[cluster]'") from None
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet())
            self._client = stack.enter_context(self._connect(stack))
            self._await_workers()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _connect(self, stack: contextlib.ExitStack) -> "Client":
        import dask
        from distributed import Client, LocalCluster

        stack.enter_context(dask.config.set(OWN))
        if self.own is None:
            client = Client.__new__(Client)
            try:
                client.__init__(self.address, timeout="10s", set_as_default=False)  # type: ignore[misc]
                return client
            except Exception as fault:  # whatever may answer at a port, and however dask then fails
                client.status = "closed"  # else its end would wait 20 s for what never began
                raise SerError(f"no dask scheduler answers at {self.address} ({fault})") from fault
        try:
            cluster = LocalCluster(
                n_workers=self.own,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # it listens there even so; no fixed port
                memory_limit=0,  # a worker that dask pauses for its memory would never go on: models stay loaded
                silence_logs=logging.CRITICAL,
            )
        except (OSError, RuntimeError) as fault:
            raise SerError(
                f"--scheduler {self.address}: the workers did not start ({fault}); a script of your own needs "
                "`if __name__ == '__main__':`"
            ) from fault
        stack.enter_context(cluster)
        return Client(cluster, set_as_default=False)

    def _await_workers(self) -> None:
        deadline = time.monotonic() + self.patience
        while not self._look(anew=True):
            if time.monotonic() > deadline:
                raise SerError(f"{self._nobody()} in {self.patience:.0f} s; {self._start()} and run again")
            time.sleep(0.2)

    @property
    def offers(self) -> dict[str, float]:
        """The resources that workers declare, and the most that any one has."""
        found: dict[str, float] = {}
        for worker in self._look().values():
            for name, amount in worker["resources"].items():
                found[name] = max(amount, found.get(name, 0.0))
        return found

    def run(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        needs: Callable[[T], Needs] | None = None,
        split: Callable[[T], list[T] | None] | None = None,
        lost: Callable[[T, str], R] | None = None,
    ) -> Iterator[R]:
        """`function(task)` for every task, results as they come; `tasks` is read no further than the window.

        A task that kills its workers is cut by `split` into smaller ones (none at all where nothing is left to do);
        where that gives None, `lost(task, reason)` is its result, and without `lost` it is a `SerError`.

        Raises what the function raises, `WrongUse` at once for resources that no worker has, and `SerError` if the
        scheduler is gone, or every worker for longer than `patience`.
        """
        wanted = needs or (lambda task: {})
        suspects: deque[T] = deque()
        for task, result in self._each(function, tasks, wanted):
            if isinstance(result, Died):
                suspects.append(task)
            else:
                yield result
        while suspects:
            task = suspects.popleft()
            [(_, result)] = self._each(function, [task], wanted)
            if not isinstance(result, Died):
                yield result
            elif (pieces := split(task) if split else None) is not None:
                suspects.extendleft(reversed(pieces))
            elif lost:
                yield lost(task, str(result))
            else:
                raise SerError(f"{result} on {task_name(task)}; what was finished is kept")

    def _each(
        self, function: Callable[[T], R], tasks: Iterable[T], needs: Callable[[T], Needs]
    ) -> Iterator[tuple[T, R | Died]]:
        """Each task with its result or its death."""
        remaining = iter(tasks)
        landed: SimpleQueue[Future] = SimpleQueue()
        flying: dict[Any, tuple[T, Future]] = {}  # by dask's key
        lonely: float | None = None  # since when nobody is there who could do it

        def launch(task: T) -> None:
            future = self._submit(function, task, needs(task))
            flying[future.key] = (task, future)
            future.add_done_callback(landed.put)

        try:
            while True:
                for task in islice(remaining, max(0, self._room() - len(flying))):
                    launch(task)
                if not flying:
                    return
                try:
                    key = landed.get(timeout=LOOK).key
                except Empty:
                    able = any(self._able(needs(task)) for task, _ in flying.values())
                    lonely = None if able else lonely or time.monotonic()
                    if lonely and time.monotonic() - lonely > self.patience:
                        raise SerError(
                            f"{self._nobody()} for {self.patience:.0f} s; what was finished is kept: "
                            f"{self._start()} and run again"
                        ) from None
                    continue
                task, future = flying.pop(key)
                try:
                    result = self._result(task, future)
                except _Forgotten:
                    launch(task)
                else:
                    future.release()  # else the scheduler keeps every lease until Python collects garbage
                    yield task, result
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone; what runs there ends by itself
                self._client.cancel([future for _, future in flying.values()])

    def _submit(self, function: Callable[[T], R], task: T, needs: Needs) -> "Future":
        if needs and not self._able(needs):
            asked = ", ".join(f"{name}={amount:g}" for name, amount in needs.items())
            there = ", ".join(f"{name}={amount:g}" for name, amount in self.offers.items()) or "nothing"
            raise WrongUse(
                f"no dask worker at {self.address} offers {asked} (they offer {there}), and dask would wait for ever; "
                f'start one by `dask worker {self.address} --nthreads 1 --resources "{asked}"`'
            )
        try:
            # pure=False: a task that ran before and is asked for again shall run again.
            return self._client.submit(function, task, pure=False, resources=dict(needs) or None)
        except (OSError, RuntimeError) as fault:
            raise self._gone() from fault

    def _result(self, task: T, future: "Future") -> R | Died:
        from distributed import CancelledError, KilledWorker

        fault: BaseException | None
        if future.status == "error":
            fault = future.exception()
        elif future.status != "finished":
            self._look(anew=True)
            raise _Forgotten
        else:
            try:
                return future.result(timeout=self.patience)
            # Its worker died before it could be fetched. UnboundLocalError: what distributed makes of a cancellation.
            except (CancelledError, TimeoutError, OSError, UnboundLocalError):
                self._look(anew=True)
                raise _Forgotten from None
            except KilledWorker as killed:
                fault = killed
        if isinstance(fault, KilledWorker):
            return Died(f"the process that computes it dies, {fault.allowed_failures + 1} times in a row")
        raise fault if isinstance(fault, SerError) else self._foreign(task, fault)

    def _foreign(self, task: Any, fault: BaseException | None) -> Exception:
        told = "".join(traceback.format_exception(fault))
        if "ModuleNotFoundError: No module named 'ser" in told:
            return SerError(f"the dask workers at {self.address} have no ser: install the same version there")
        return RuntimeError(f"in a dask worker, on {task_name(task)}:\n{told}")

    def _look(self, anew: bool = False) -> dict[str, dict[str, Any]]:
        """Who is there, as of a moment ago."""
        if anew or time.monotonic() - self._looked > LOOK:
            if self._client.status != "running":
                raise self._gone()
            try:
                self._workers = dict(self._client.scheduler_info()["workers"])
            except (OSError, RuntimeError, TimeoutError) as fault:
                raise self._gone() from fault
            self._looked = time.monotonic()
        return self._workers

    def _room(self) -> int:
        return max(1, PER_THREAD * sum(worker["nthreads"] for worker in self._look().values()))

    def _able(self, needs: Needs) -> bool:
        return any(
            all(worker["resources"].get(name, 0) >= amount for name, amount in needs.items())
            for worker in self._look().values()
        )

    def _gone(self) -> SerError:
        return SerError(
            f"the dask scheduler at {self.address} is gone; what was finished is kept: "
            "start it and its workers again, and run the same command"
        )

    def _nobody(self) -> str:
        return f"no worker has come to the dask scheduler at {self.address}"

    def _start(self) -> str:
        return f"start some by `dask worker {self.address} --nthreads 1`"


def here() -> dict[str, Any]:
    """Which dask worker this is: its address, name, host and process; nothing where it is none."""
    try:
        from distributed import get_worker

        worker = get_worker()
    except (ImportError, ValueError):
        return {}
    return {"worker": worker.address, "name": str(worker.name), "host": socket.gethostname(), "pid": os.getpid()}


def resources() -> dict[str, float]:
    """What this dask worker declares to have, as in `dask worker --resources "GPU=1 CPU=8"`."""
    try:
        from distributed import get_worker

        return dict(get_worker().state.total_resources)
    except (ImportError, ValueError):
        return {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Deaths and lost connections are told in our own words, once."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("distributed", "tornado")]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
