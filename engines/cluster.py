"""A dask cluster: the connection to it for one run, and the tasks on its workers."""

import contextlib
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from itertools import islice
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ser.children import isolated_children
from ser.disk.deadline import within
from ser.errors import DISTRIBUTION, SerError, WrongUse

from .interrupts import defer_sigint
from .processes import R, T, task_name
from .scheduler import Needs, can_run, check_scheduler, is_protected, local_workers, no_worker
from .worker_cache import clear_cache

if TYPE_CHECKING:
    from distributed import Client, Future

# Between two requests to the scheduler.
POLL_SECONDS = 2.0
# Tasks sent per worker thread: one that runs, and the next ones.
PER_THREAD = 3
# In which all workers have to empty their cache: a frozen one never answers.
ANSWER_SECONDS = 5.0

# Seconds in which a running scheduler takes a connection.
CONNECT_SECONDS = 10.0
# Seconds without a worker, or without an answer of the scheduler.
PATIENCE = 60.0

# Our own cluster tries a task again after two deaths of its worker (dask: 3), waits for a worker
# that keeps dying (dask gives up after 15 s), restarts a worker that is silent for a minute (dask:
# 5; it answers while it computes), and keeps the last 10 messages to each worker (dask: 1000, each
# with a whole task).
OWN_CLUSTER = {
    "distributed.scheduler.worker-ttl": "1 minute",
    "distributed.scheduler.allowed-failures": 2,
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.admin.low-level-log-length": 10,
}

# Our own messages report deaths and lost connections.
SILENCED = ("distributed", "tornado", "asyncio")


def run_same_version(expected: str, function: Callable[[T], R], task: T) -> R:
    """On a worker: `function(task)`, if the worker has the `expected` version of ser.

    Raises `SerError`: another version may compute other numbers.
    """
    here = version(DISTRIBUTION)
    if here != expected:
        raise SerError(
            f"a dask worker has ser {here}, and this command has ser {expected}; "
            "install the same version there"
        )
    return function(task)


class Cluster:
    """A dask cluster, connected for one run.

    It is a running one, by its address or scheduler file, or our own, `local:N`. Our own has N
    processes of one thread, listens on 127.0.0.1 only, and ends with the connection. What workers
    have `cached` is closed at the end. `patience` is how many seconds may pass without a worker for
    what is left, or without an answer of the scheduler.
    """

    def __init__(
        self, scheduler: str, insecure: bool = False, patience: float | None = None
    ) -> None:
        self.address = check_scheduler(scheduler, insecure)
        self.local_workers = local_workers(scheduler)
        self.patience = PATIENCE if patience is None else patience
        self._scheduler = f"the dask scheduler at {self.address}"
        # The sets of resources that workers have declared since the run began.
        self.kinds: list[dict[str, float]] = []
        self._workers: list[dict[str, Any]] = []
        self._polled = -POLL_SECONDS
        self._stack = contextlib.ExitStack()
        self._client: Client
        if self.local_workers is None and not is_protected(self.address):
            warning = "%s: dask runs whatever anyone on the network sends; --insecure accepts that"
            logging.getLogger("ser.engines").warning(warning, self.address)

    def __enter__(self) -> "Cluster":
        import distributed  # noqa: F401 (makes its loggers)

        try:
            self._silence_loggers()
            client = self._start_own() if self.local_workers else self._connect()
            self._client = self._stack.enter_context(client)
            if self.local_workers is None:
                # A killed run may have left things there.
                self._clear_caches()
                self._stack.callback(self._clear_caches)
            self._wait_for_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A second Ctrl-C would leave processes behind, and dask's messages about them.
        with defer_sigint():
            self._stack.close()

    def _silence_loggers(self) -> None:
        """Silence dask's loggers until the end of the run."""
        for name in list(logging.root.manager.loggerDict):
            if name.partition(".")[0] in SILENCED:
                logger = logging.getLogger(name)
                self._stack.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL)

    def _wait_for_worker(self) -> None:
        """Wait for the first worker. Raises `SerError` when `patience` is over."""
        deadline = time.monotonic() + self.patience
        while not self.workers(anew=True):
            if time.monotonic() > deadline:
                raise SerError(no_worker(self.address, {}))
            time.sleep(0.2)

    def _connect(self) -> "Client":
        from distributed import Client

        client = Client.__new__(Client)

        def connect() -> None:
            # Its own limit ends when something takes the connection, whether it then speaks or not.
            client.__init__(  # type: ignore[misc]
                self.address, timeout=f"{CONNECT_SECONDS}s", set_as_default=False
            )

        try:
            within(min(2 * CONNECT_SECONDS, self.patience), self._scheduler, connect)
        except Exception as error:
            # Anything may answer at a port, and dask may fail in any way. Without this the client's
            # end would wait 20 s for what never began.
            client.status = "closed"
            raise SerError(f"no dask scheduler answers at {self.address} ({error})") from error
        return client

    def _start_own(self) -> "Client":
        import dask
        from distributed import Client, LocalCluster

        self._stack.enter_context(dask.config.set(OWN_CLUSTER))
        # To the end of the run: a worker that has died is started again.
        self._stack.enter_context(isolated_children())
        # Started later, it would unblock what is blocked next.
        resource_tracker.ensure_running()
        try:
            # Also for workers that are started later, by a thread that starts here.
            with defer_sigint():
                cluster = LocalCluster(
                    n_workers=self.local_workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    # It listens anyway; not at a fixed port.
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                    # dask would pause a worker for its memory for ever, since models stay loaded.
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                )
                self._stack.enter_context(cluster)
        except (OSError, RuntimeError) as error:
            raise SerError(
                f"--scheduler {self.address}: the workers did not start ({error}); "
                "a script of your own needs `if __name__ == '__main__':`"
            ) from error
        return Client(cluster, set_as_default=False)

    def _clear_caches(self) -> None:
        if self._client.status == "running":
            # Workers may die at any moment, or have no ser.
            with contextlib.suppress(Exception):
                self._client.sync(
                    self._client.run,
                    clear_cache,
                    on_error="ignore",
                    callback_timeout=ANSWER_SECONDS,
                )

    def workers(self, anew: bool = False) -> list[dict[str, Any]]:
        """The scheduler's record of each worker, at most `POLL_SECONDS` old unless `anew`.

        A worker that dies is missing until its nanny has restarted it: so a kind of worker that is
        missing now, but is among `kinds`, may come back. Raises `SerError` if the scheduler is
        gone.
        """
        if anew or time.monotonic() - self._polled > POLL_SECONDS:
            try:
                if self._client.status != "running":
                    raise OSError("disconnected")
                # Half the patience: what is asked before may have waited as long.
                info = within(self.patience / 2, self._scheduler, self._ask_scheduler)
                self._workers = list(info["workers"].values())
            except TimeoutError:
                # Its end would wait for the scheduler again.
                self._client.status = "closed"
                raise SerError(
                    f"{self._scheduler} is silent for {self.patience:.0f} s; what was finished is "
                    "kept: look whether its machine is alive, and run the same command again"
                ) from None
            except (OSError, RuntimeError) as error:
                raise self._gone() from error
            self._polled = time.monotonic()
            for worker in self._workers:
                if worker["resources"] not in self.kinds:
                    self.kinds.append(worker["resources"])
        return self._workers

    def _ask_scheduler(self) -> Any:
        # Some versions of dask give five workers by default.
        return self._client.scheduler_info(n_workers=-1)

    def run(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        needs: Callable[[T], Needs] = lambda task: {},
        split: Callable[[T], list[T] | None] = lambda task: None,
        lost: Callable[[T, str], R] | None = None,
    ) -> Iterator[R]:
        """`function(task)` for every task, results as they come.

        `tasks` is read as workers have room for more. `split` cuts a task that kills its workers
        into smaller ones (none if nothing is left to do); if it returns None, `lost(task, reason)`
        is the task's result, and without `lost` it is a `SerError`.

        Raises what the function raises, `WrongUse` at once for resources that no worker has had
        since the run began, and `SerError` if the scheduler is gone, or if for longer than
        `patience` no worker could do what is left.
        """
        from distributed import CancelledError, KilledWorker

        remaining = iter(tasks)
        # Tasks that killed their workers, tried one by one after all others.
        deadly: deque[T] = deque()
        one_by_one = False
        finished: SimpleQueue[Future] = SimpleQueue()
        # By dask's key.
        pending: dict[Any, tuple[T, Needs, Future]] = {}
        # Since when no worker could do any of the pending tasks.
        idle_since: float | None = None

        def submit(task: T) -> None:
            needed = needs(task)
            if not can_run(self.kinds, needed):
                # A worker of a new kind may just have come.
                workers = self.workers(anew=True)
                if workers and not can_run(self.kinds, needed):
                    raise WrongUse(no_worker(self.address, needed))
            try:
                # pure=False: a task that ran before and is submitted again must run again.
                future = self._client.submit(
                    run_same_version,
                    version(DISTRIBUTION),
                    function,
                    task,
                    pure=False,
                    resources=dict(needed) or None,
                )
            except (OSError, RuntimeError) as error:
                raise self._gone() from error
            pending[future.key] = (task, needed, future)
            future.add_done_callback(finished.put)

        try:
            while True:
                threads = max(1, sum(worker["nthreads"] for worker in self.workers()))
                room = max(0, PER_THREAD * threads - len(pending))
                for task in islice(remaining, room):
                    submit(task)

                if not pending and deadly:
                    one_by_one = True
                    submit(deadly.popleft())
                if not pending:
                    return

                try:
                    task, _, future = pending.pop(finished.get(timeout=POLL_SECONDS).key)
                except Empty:
                    if self._any_can_run(needed for _, needed, _ in pending.values()):
                        idle_since = None
                    elif idle_since is None:
                        idle_since = time.monotonic()
                    if idle_since and time.monotonic() - idle_since > self.patience:
                        _, needed, _ = next(iter(pending.values()))
                        raise SerError(no_worker(self.address, needed)) from None
                    continue
                idle_since = None

                try:
                    result = self._result(task, future)
                except CancelledError:
                    self.workers(anew=True)
                    submit(task)
                    continue
                except KilledWorker as killed:
                    times = killed.allowed_failures + 1
                    reason = f"the process that computes it dies, {times} times in a row"
                    pieces = split(task) if one_by_one else [task]
                    if pieces is not None:
                        deadly.extendleft(reversed(pieces))
                        continue
                    if lost is None:
                        raise SerError(
                            f"{reason} on {task_name(task)}; what was finished is kept"
                        ) from None
                    result = lost(task, reason)
                yield result
        finally:
            # The scheduler may be gone; running tasks end by themselves.
            with contextlib.suppress(Exception):
                self._client.cancel([future for _, _, future in pending.values()])

    def _any_can_run(self, needs: Iterable[Needs]) -> bool:
        """Whether a worker that is there now could run a task with one of these needs."""
        resources = [worker["resources"] for worker in self.workers()]
        return any(can_run(resources, needed) for needed in needs)

    def _result(self, task: T, future: "Future") -> Any:
        """The task's result.

        Raises what it raised, `KilledWorker`, or `CancelledError` if dask has lost it.
        """
        from distributed import CancelledError, KilledWorker

        try:
            fault = future.exception() if future.status == "error" else None
            if fault is None and future.status == "finished":
                return future.result(timeout=self.patience / 2)
        # The worker died before the result was fetched. UnboundLocalError: distributed's, for a
        # cancellation.
        except (CancelledError, TimeoutError, OSError, UnboundLocalError):
            fault = None
        finally:
            # Otherwise the scheduler keeps every task until Python collects garbage.
            future.release()
        if fault is None:
            raise CancelledError
        if isinstance(fault, (SerError, KilledWorker)):
            raise fault
        trace = "".join(traceback.format_exception(fault))
        if "ModuleNotFoundError: No module named 'ser" in trace:
            raise SerError(
                f"the dask workers at {self.address} have no ser: install the same version there"
            )
        if "run_same_version" in str(fault):
            # Their ser is of before this function.
            raise SerError(
                f"the dask workers at {self.address} have another ser than this command, "
                f"which has {version(DISTRIBUTION)}: install the same version there"
            )
        raise RuntimeError(f"in a dask worker, on {task_name(task)}:\n{trace}")

    def _gone(self) -> SerError:
        return SerError(
            f"the dask scheduler at {self.address} is gone; what was finished is kept: "
            "start it and its workers again, and run the same command"
        )
