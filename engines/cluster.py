"""A dask cluster: its address, the connection to it, kept for one run, and the tasks that its workers have in hand."""

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

from ser.cache.atomic_io import read_named
from ser.errors import SerError, WrongUse

from .processes import R, T, clear_cache, defer_sigint, task_name

if TYPE_CHECKING:
    from distributed import Client, Future

Needs = Mapping[str, float]  # resource → how much of it a task takes, as in `dask worker --resources "GPU=1"`

ENCRYPTED = ("tls", "wss", "inproc")  # with certificates; inproc: within this process
POLL_SECONDS = 2.0  # between two questions to the scheduler
PER_THREAD = 3  # tasks in hand per worker thread: one that runs and the next ones there already
ANSWER_SECONDS = 5.0  # that all workers have to empty their cache: a frozen one never answers
# A cluster of its own forgives a task two deaths (dask: 3), waits for a worker that dies again and again (dask closes
# after 15 s what restarts it), starts a worker again that has been silent for a minute (dask: 5; it answers while it
# computes), and keeps the last 10 messages to each worker (dask 1000, and each holds a whole task).
OWN_CLUSTER = {
    "distributed.scheduler.worker-ttl": "1 minute",
    "distributed.scheduler.allowed-failures": 2,
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.admin.low-level-log-length": 10,
}


def check_scheduler(scheduler: str, insecure: bool = False, workers: int | None = None) -> str:
    """The address, or `local:N` as it is. Asks nobody, so a command can begin with it.

    Raises `WrongUse` for what cannot be a scheduler, for `workers` given beside one, and, unless `insecure`, for a
    plain connection to another machine; `SerError` if dask is not installed.
    """
    if workers is not None:
        raise WrongUse("--workers starts processes here, and --scheduler uses the workers of a cluster: give one")
    address = scheduler
    if local_workers(scheduler) is None:
        try:
            if "://" not in scheduler:
                address = str(msgspec.json.decode(read_named(scheduler), type=dict[str, Any])["address"])
            if urlsplit(address).port == 0 or "://" not in address:  # asking for the port raises for what is none
                raise ValueError("no address")
        except (OSError, msgspec.DecodeError, ValueError, LookupError, RecursionError) as fault:
            raise WrongUse(
                f"--scheduler {scheduler}: is not an address such as tcp://127.0.0.1:8786, not local:N, and not a "
                f"scheduler file, as `dask scheduler --scheduler-file` writes one ({fault})"
            ) from None
        if not insecure and not is_protected(address):
            raise WrongUse(
                f"--scheduler {scheduler}: {address} is plain and leads to another machine, and dask runs whatever it "
                "is sent; use tls:// or an ssh tunnel to 127.0.0.1, or say --insecure where you trust everyone on the "
                "network"
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
    """Whether nobody on the network can read or alter what is sent there."""
    return urlsplit(address).scheme in ENCRYPTED or on_this_machine(address)


def on_this_machine(address: str) -> bool:
    """Whether it is a loopback address: no other machine can reach what listens there, or be reached."""
    host = urlsplit(address).hostname
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def able(kinds: Iterable[Needs], needs: Needs) -> bool:
    """Whether any worker that declares one of these sets of resources could run a task."""
    return any(all(kind.get(name, 0) >= amount for name, amount in needs.items()) for kind in kinds)


def no_worker(address: str, needs: Needs) -> str:
    """One sentence: what no worker offers, and how to start one.

    The command that it names starts a worker that listens no wider than the scheduler.
    """
    resources = ", ".join(f"{name}={math.ceil(amount)}" for name, amount in needs.items())  # a share is of a whole one
    missing = f"the dask scheduler at {address} has no worker" + (f" with {resources}" if needs else "")
    if local_workers(address):
        return f"{missing}; what was finished is kept: run again"
    host = "127.0.0.1" if on_this_machine(address) else "ITS_ADDRESS"
    tls = " --tls-ca-file FILE --tls-cert FILE --tls-key FILE" if address.startswith("tls:") else ""
    needed = f' --resources "{resources}"' if needs else ""
    command = f"dask worker {address} --host {host} --dashboard-address 127.0.0.1:0 --nthreads 1{tls}{needed}"
    return f"{missing}; what was finished is kept: start one by `{command}` and run again"


class Cluster:
    """A dask cluster, connected for one run: a running one by its address or scheduler file, or `local:N` of its own.

    A cluster of its own has N processes of one thread, listens on 127.0.0.1 alone, and ends with the connection. What
    workers keep `cached` is closed then. `patience` is how many seconds a cluster may be without any worker that could
    do what is left.
    """

    def __init__(self, scheduler: str, insecure: bool = False, patience: float = 60.0) -> None:
        self.address = check_scheduler(scheduler, insecure)
        self.own = local_workers(scheduler)
        self.patience = patience
        self.kinds: list[dict[str, float]] = []  # of resources that workers have declared since the run began
        self._workers: list[dict[str, Any]] = []
        self._asked = -POLL_SECONDS
        self._stack = contextlib.ExitStack()
        self._client: Client
        if self.own is None and not is_protected(self.address):
            log = logging.getLogger("ser.engines")
            log.warning("%s: dask runs whatever anyone on the network sends; --insecure accepts that", self.address)

    def __enter__(self) -> "Cluster":
        import distributed  # noqa: F401 (makes its loggers)

        try:
            for name in list(logging.root.manager.loggerDict):
                if name.partition(".")[0] in ("distributed", "tornado", "asyncio"):
                    logger = logging.getLogger(name)  # deaths and lost connections are reported in our own words
                    self._stack.callback(logger.setLevel, logger.level)
                    logger.setLevel(logging.CRITICAL)
            self._client = self._stack.enter_context(self._own() if self.own else self._connected())
            if self.own is None:
                self._clear_caches()  # of what a run that was killed left there
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
        with defer_sigint():  # a second Ctrl-C would leave processes, and dask's own messages about them
            self._stack.close()

    def _connected(self) -> "Client":
        from distributed import Client

        client = Client.__new__(Client)
        try:
            client.__init__(self.address, timeout="10s", set_as_default=False)  # type: ignore[misc]
        except Exception as fault:  # whatever may answer at a port, and however dask then fails
            client.status = "closed"  # else its end would wait 20 s for what never began
            raise SerError(f"no dask scheduler answers at {self.address} ({fault})") from fault
        return client

    def _own(self) -> "Client":
        import dask
        from distributed import Client, LocalCluster

        self._stack.enter_context(dask.config.set(OWN_CLUSTER))
        resource_tracker.ensure_running()  # started later, it would unblock what is blocked next
        try:
            with defer_sigint():  # also in workers that are started later, by a thread that starts here
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
                self._stack.enter_context(cluster)
        except (OSError, RuntimeError) as fault:
            raise SerError(
                f"--scheduler {self.address}: the workers did not start ({fault}); a script of your own needs "
                "`if __name__ == '__main__':`"
            ) from fault
        return Client(cluster, set_as_default=False)

    def _clear_caches(self) -> None:
        if self._client.status == "running":
            with contextlib.suppress(Exception):  # workers die at any moment, and somebody else's may have no ser
                self._client.sync(self._client.run, clear_cache, on_error="ignore", callback_timeout=ANSWER_SECONDS)

    def workers(self, anew: bool = False) -> list[dict[str, Any]]:
        """The scheduler's record of each worker, as of a moment ago. Raises `SerError` if the scheduler is gone.

        A worker that dies is missing until its nanny has started it again: so what no worker offers now, but one of
        `kinds` has, may come back.
        """
        if anew or time.monotonic() - self._asked > POLL_SECONDS:
            try:
                if self._client.status != "running":
                    raise OSError("disconnected")
                # Some versions of dask give five workers by default.
                self._workers = list(self._client.scheduler_info(n_workers=-1)["workers"].values())
            except (OSError, RuntimeError) as fault:
                raise self._gone() from fault
            self._asked = time.monotonic()
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
        """`function(task)` for every task, results as they come; `tasks` is read as workers have room for more.

        A task that kills its workers is cut by `split` into smaller ones (none at all if nothing is left to do);
        if that gives None, `lost(task, reason)` is its result, and without `lost` it is a `SerError`.

        Raises what the function raises, `WrongUse` at once for resources that no worker has had since the run began,
        and `SerError` if the scheduler is gone, or for longer than `patience` every worker that could do what is left.
        """
        from distributed import CancelledError, KilledWorker

        remaining = iter(tasks)
        deadly: deque[T] = deque()  # what has killed its workers, tried one by one after all others
        one_by_one = False
        finished: SimpleQueue[Future] = SimpleQueue()
        pending: dict[Any, tuple[T, Needs, Future]] = {}  # by dask's key
        alone_since: float | None = None  # since when no worker is there that could do any of it

        def submit(task: T) -> None:
            needed = needs(task)
            # One that is not known may have come in this moment.
            if not able(self.kinds, needed) and self.workers(anew=True) and not able(self.kinds, needed):
                raise WrongUse(no_worker(self.address, needed))
            try:
                # pure=False: a task that ran before and is asked for again must run again.
                future = self._client.submit(function, task, pure=False, resources=dict(needed) or None)
            except (OSError, RuntimeError) as fault:
                raise self._gone() from fault
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
                    alone_since = None if hopeful else alone_since or time.monotonic()
                    if alone_since and time.monotonic() - alone_since > self.patience:
                        raise SerError(no_worker(self.address, next(iter(pending.values()))[1])) from None
                    continue
                alone_since = None
                try:
                    result = self._result(task, future)
                except CancelledError:
                    self.workers(anew=True)
                    submit(task)
                    continue
                except KilledWorker as killed:
                    reason = f"the process that computes it dies, {killed.allowed_failures + 1} times in a row"
                    if (pieces := split(task) if one_by_one else [task]) is not None:
                        deadly.extendleft(reversed(pieces))
                        continue
                    if lost is None:
                        raise SerError(f"{reason} on {task_name(task)}; what was finished is kept") from None
                    result = lost(task, reason)
                yield result
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone; what runs there ends by itself
                self._client.cancel([future for _, _, future in pending.values()])

    def _result(self, task: T, future: "Future") -> Any:
        """Raises what the task raised, `KilledWorker`, or `CancelledError` if dask forgot it, as after a restart."""
        from distributed import CancelledError, KilledWorker

        try:
            fault = future.exception() if future.status == "error" else None
            if fault is None and future.status == "finished":
                return future.result(timeout=self.patience)
        # Its worker died before it could be fetched. UnboundLocalError: what distributed makes of a cancellation.
        except (CancelledError, TimeoutError, OSError, UnboundLocalError):
            fault = None
        finally:
            future.release()  # else the scheduler keeps every task until Python collects garbage
        if fault is None:
            raise CancelledError
        if isinstance(fault, (SerError, KilledWorker)):
            raise fault
        trace = "".join(traceback.format_exception(fault))
        if "ModuleNotFoundError: No module named 'ser" in trace:
            raise SerError(f"the dask workers at {self.address} have no ser: install the same version there")
        raise RuntimeError(f"in a dask worker, on {task_name(task)}:\n{trace}")

    def _gone(self) -> SerError:
        return SerError(
            f"the dask scheduler at {self.address} is gone; what was finished is kept: "
            "start it and its workers again, and run the same command"
        )
