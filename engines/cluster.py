"""A dask cluster: its address, the connection to it for one run, and the tasks on its workers."""

import contextlib
import ipaddress
import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import islice
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from ser.disk.read import read_named
from ser.errors import SerError, WrongUse

from .processes import R, T, clear_cache, defer_sigint, task_name

if TYPE_CHECKING:
    from distributed import Client, Future

Needs = Mapping[
    str, float
]  # resource → how much of it a task needs, as in `dask worker --resources "GPU=1"`

ENCRYPTED = ("tls", "wss", "inproc")  # with certificates; inproc: within this process
POLL_SECONDS = 2.0  # between two requests to the scheduler
PER_THREAD = 3  # tasks sent per worker thread: one that runs, and the next ones
ANSWER_SECONDS = 5.0  # in which all workers have to empty their cache: a frozen one never answers
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


def check_scheduler(scheduler: str, insecure: bool = False, workers: int | None = None) -> str:
    """The address, or `local:N` as it is, checked without a connection.

    Raises `WrongUse` for what cannot be a scheduler, for `workers` given beside one, and, unless
    `insecure`, for a plain connection to another machine; `SerError` if dask is not installed.
    """
    if workers is not None:
        raise WrongUse(
            "--workers starts processes here, and --scheduler uses the workers of a cluster: give one"
        )
    address = scheduler
    if local_workers(scheduler) is None:
        try:
            if "://" not in scheduler:
                address = str(
                    msgspec.json.decode(read_named(scheduler), type=dict[str, Any])["address"]
                )
            if (
                urlsplit(address).port == 0 or "://" not in address
            ):  # `port` raises for one that is not a number
                raise ValueError("no address")
        except (OSError, msgspec.DecodeError, ValueError, LookupError, RecursionError) as error:
            raise WrongUse(
                f"--scheduler {scheduler}: is not an address such as tcp://127.0.0.1:8786, not local:N, and not a "
                f"scheduler file, as `dask scheduler --scheduler-file` writes one ({error})"
            ) from None
        if not insecure and not is_protected(address):
            raise WrongUse(
                f"--scheduler {scheduler}: {address} is not encrypted and leads to another machine, and dask runs "
                "whatever it is sent; use tls:// or an ssh tunnel to 127.0.0.1, or --insecure if you trust everyone "
                "on the network"
            )
    if find_spec("distributed") is None:
        raise SerError("--scheduler needs dask: pip install 'ser-fusion[cluster]'")
    return address


def local_workers(scheduler: str) -> int | None:
    """N of `local:N`; None for anything else. Raises `WrongUse` if N is not a number of workers."""
    kind, _, number = scheduler.partition(":")
    if kind != "local":
        return None
    if not number.isdecimal() or not int(number):
        raise WrongUse(f"--scheduler {scheduler}: write local:N with N workers, such as local:4")
    return int(number)


def is_protected(address: str) -> bool:
    """Whether no one on the network can read or alter what is sent there."""
    return urlsplit(address).scheme in ENCRYPTED or on_this_machine(address)


def on_this_machine(address: str) -> bool:
    """Whether it is a loopback address, which no other machine can reach."""
    host = urlsplit(address).hostname
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def able(kinds: Iterable[Needs], needs: Needs) -> bool:
    """Whether a worker with one of these sets of resources could run a task."""
    return any(all(kind.get(name, 0) >= amount for name, amount in needs.items()) for kind in kinds)


def no_worker(address: str, needs: Needs) -> str:
    """One sentence: which worker is missing, and how to start one that listens no wider than the
    scheduler.
    """
    resources = ", ".join(
        f"{name}={math.ceil(amount)}" for name, amount in needs.items()
    )  # a share needs a whole one
    fault = f"the dask scheduler at {address} has no worker" + (
        f" with {resources}" if needs else ""
    )
    if local_workers(address):
        return f"{fault}; what was finished is kept: run again"
    host = "127.0.0.1" if on_this_machine(address) else "ITS_ADDRESS"
    tls = " --tls-ca-file FILE --tls-cert FILE --tls-key FILE" if address.startswith("tls:") else ""
    option = f' --resources "{resources}"' if needs else ""
    command = f"dask worker {address} --host {host} --dashboard-address 127.0.0.1:0 --nthreads 1{tls}{option}"
    return f"{fault}; what was finished is kept: start one by `{command}` and run again"


class Cluster:
    """A dask cluster, connected for one run: a running one by its address or scheduler file, or our
    own, `local:N`.

    Our own has N processes of one thread, listens on 127.0.0.1 only, and ends with the connection.
    What workers have `cached` is closed at the end. `patience` is how many seconds may pass without
    a worker for what is left.
    """

    def __init__(self, scheduler: str, insecure: bool = False, patience: float = 60.0) -> None:
        self.address = check_scheduler(scheduler, insecure)
        self.own = local_workers(scheduler)
        self.patience = patience
        self.kinds: list[
            dict[str, float]
        ] = []  # of resources that workers have declared since the run began
        self._workers: list[dict[str, Any]] = []
        self._polled = -POLL_SECONDS
        self._stack = contextlib.ExitStack()
        self._client: Client
        if self.own is None and not is_protected(self.address):
            warning = "%s: dask runs whatever anyone on the network sends; --insecure accepts that"
            logging.getLogger("ser.engines").warning(warning, self.address)

    def __enter__(self) -> "Cluster":
        import distributed  # noqa: F401 (makes its loggers)

        try:
            for name in list(logging.root.manager.loggerDict):
                if name.partition(".")[0] in ("distributed", "tornado", "asyncio"):
                    logger = logging.getLogger(
                        name
                    )  # our own messages report deaths and lost connections
                    self._stack.callback(logger.setLevel, logger.level)
                    logger.setLevel(logging.CRITICAL)
            self._client = self._stack.enter_context(self._own() if self.own else self._connected())
            if self.own is None:
                self._clear_caches()  # a killed run may have left things there
                self._stack.callback(self._clear_caches)
            deadline = time.monotonic() + self.patience
            while not self.workers(anew=True):
                if time.monotonic() > deadline:
                    raise SerError(no_worker(self.address, {}))
                time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with (
            defer_sigint()
        ):  # a second Ctrl-C would leave processes behind, and dask's messages about them
            self._stack.close()

    def _connected(self) -> "Client":
        from distributed import Client

        client = Client.__new__(Client)
        try:
            client.__init__(self.address, timeout="10s", set_as_default=False)  # type: ignore[misc]
        except Exception as error:  # anything may answer at a port, and dask may fail in any way
            client.status = "closed"  # otherwise its end would wait 20 s for what never began
            raise SerError(f"no dask scheduler answers at {self.address} ({error})") from error
        return client

    def _own(self) -> "Client":
        import dask
        from distributed import Client, LocalCluster

        self._stack.enter_context(dask.config.set(OWN_CLUSTER))
        resource_tracker.ensure_running()  # started later, it would unblock what is blocked next
        try:
            with (
                defer_sigint()
            ):  # also for workers that are started later, by a thread that starts here
                cluster = LocalCluster(
                    n_workers=self.own,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    scheduler_kwargs={
                        "dashboard_address": "127.0.0.1:0"
                    },  # it listens anyway; not at a fixed port
                    memory_limit=0,  # dask would pause a worker for its memory for ever, since models stay loaded
                    silence_logs=logging.CRITICAL,
                )
                self._stack.enter_context(cluster)
        except (OSError, RuntimeError) as error:
            raise SerError(
                f"--scheduler {self.address}: the workers did not start ({error}); a script of your own needs "
                "`if __name__ == '__main__':`"
            ) from error
        return Client(cluster, set_as_default=False)

    def _clear_caches(self) -> None:
        if self._client.status == "running":
            with contextlib.suppress(Exception):  # workers may die at any moment, or have no ser
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
                # Some versions of dask give five workers by default.
                self._workers = list(self._client.scheduler_info(n_workers=-1)["workers"].values())
            except (OSError, RuntimeError) as error:
                raise self._gone() from error
            self._polled = time.monotonic()
            for worker in self._workers:
                if worker["resources"] not in self.kinds:
                    self.kinds.append(worker["resources"])
        return self._workers

    def run(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        needs: Callable[[T], Needs] = lambda task: {},
        split: Callable[[T], list[T] | None] = lambda task: None,
        lost: Callable[[T, str], R] | None = None,
    ) -> Iterator[R]:
        """`function(task)` for every task, results as they come; `tasks` is read as workers have
        room for more.

        `split` cuts a task that kills its workers into smaller ones (none if nothing is left to
        do); if it returns None, `lost(task, reason)` is the task's result, and without `lost` it is
        a `SerError`.

        Raises what the function raises, `WrongUse` at once for resources that no worker has had
        since the run began, and `SerError` if the scheduler is gone, or if for longer than
        `patience` no worker could do what is left.
        """
        from distributed import CancelledError, KilledWorker

        remaining = iter(tasks)
        deadly: deque[T] = (
            deque()
        )  # tasks that killed their workers, tried one by one after all others
        one_by_one = False
        finished: SimpleQueue[Future] = SimpleQueue()
        pending: dict[Any, tuple[T, Needs, Future]] = {}  # by dask's key
        idle_since: float | None = None  # since when no worker could do any of the pending tasks

        def submit(task: T) -> None:
            needed = needs(task)
            # A worker of a new kind may just have come.
            if (
                not able(self.kinds, needed)
                and self.workers(anew=True)
                and not able(self.kinds, needed)
            ):
                raise WrongUse(no_worker(self.address, needed))
            try:
                # pure=False: a task that ran before and is submitted again must run again.
                future = self._client.submit(
                    function, task, pure=False, resources=dict(needed) or None
                )
            except (OSError, RuntimeError) as error:
                raise self._gone() from error
            pending[future.key] = (task, needed, future)
            future.add_done_callback(finished.put)

        try:
            while True:
                threads = max(1, sum(worker["nthreads"] for worker in self.workers()))
                for task in islice(remaining, max(0, PER_THREAD * threads - len(pending))):
                    submit(task)
                if not pending and deadly:
                    one_by_one = True
                    submit(deadly.popleft())
                if not pending:
                    return
                try:
                    task, _, future = pending.pop(finished.get(timeout=POLL_SECONDS).key)
                except Empty:
                    there = [worker["resources"] for worker in self.workers()]
                    hopeful = any(able(there, needed) for _, needed, _ in pending.values())
                    idle_since = None if hopeful else idle_since or time.monotonic()
                    if idle_since and time.monotonic() - idle_since > self.patience:
                        raise SerError(
                            no_worker(self.address, next(iter(pending.values()))[1])
                        ) from None
                    continue
                idle_since = None
                try:
                    result = self._result(task, future)
                except CancelledError:
                    self.workers(anew=True)
                    submit(task)
                    continue
                except KilledWorker as killed:
                    reason = f"the process that computes it dies, {killed.allowed_failures + 1} times in a row"
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
            with contextlib.suppress(
                Exception
            ):  # the scheduler may be gone; running tasks end by themselves
                self._client.cancel([future for _, _, future in pending.values()])

    def _result(self, task: T, future: "Future") -> Any:
        """The task's result. Raises what it raised, `KilledWorker`, or `CancelledError` if dask has
        lost it.
        """
        from distributed import CancelledError, KilledWorker

        try:
            fault = future.exception() if future.status == "error" else None
            if fault is None and future.status == "finished":
                return future.result(timeout=self.patience)
        # The worker died before the result was fetched. UnboundLocalError: distributed's, for a
        # cancellation.
        except (CancelledError, TimeoutError, OSError, UnboundLocalError):
            fault = None
        finally:
            future.release()  # otherwise the scheduler keeps every task until Python collects garbage
        if fault is None:
            raise CancelledError
        if isinstance(fault, (SerError, KilledWorker)):
            raise fault
        trace = "".join(traceback.format_exception(fault))
        if "ModuleNotFoundError: No module named 'ser" in trace:
            raise SerError(
                f"the dask workers at {self.address} have no ser: install the same version there"
            )
        raise RuntimeError(f"in a dask worker, on {task_name(task)}:\n{trace}")

    def _gone(self) -> SerError:
        return SerError(
            f"the dask scheduler at {self.address} is gone; what was finished is kept: "
            "start it and its workers again, and run the same command"
        )
