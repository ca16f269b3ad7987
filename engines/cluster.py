"""A dask cluster: the connection to it, held for one run."""

import contextlib
import ipaddress
import json
import logging
import re
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from ser.errors import SerError, WrongUse

from . import worker_cache
from .processes import defer_sigint, task_name

if TYPE_CHECKING:
    from distributed import Client, Future


SAFE = ("tls", "wss", "inproc")  # encrypted and with certificates, or within this process
log = logging.getLogger("ser.engines")


def local_workers(scheduler: str) -> int | None:
    """N of `local:N`; None for anything else. Raises `WrongUse` for an N that is no number of workers."""
    kind, _, number = scheduler.partition(":")
    if kind != "local":
        return None
    if not number.isdecimal() or not int(number):
        raise WrongUse(f"--scheduler {scheduler}: write local:N with N workers, such as local:4")
    return int(number)


def check_scheduler(scheduler: str, insecure: bool = False) -> None:
    """Before anything is begun. Raises `WrongUse` for what no cluster can be, and `SerError` without dask."""
    if local_workers(scheduler) is None:
        _allowed(scheduler, insecure)
    if find_spec("distributed") is None:
        raise SerError("--scheduler needs dask: pip install 'ser[cluster]'")


def checked_address(scheduler: str, insecure: bool = False) -> str:
    """The address of a running scheduler, from an address or the path of dask's scheduler file.

    Raises `WrongUse` for what is neither, and for a plain connection beyond this machine unless `insecure`, which
    warns instead.
    """
    address = _allowed(scheduler, insecure)
    if not _is_safe(address):
        log.warning("%s: dask runs whatever it is sent, and asks nobody who they are; --insecure accepts that", address)
    return address


def _allowed(scheduler: str, insecure: bool) -> str:
    address = scheduler
    if "://" not in scheduler:
        address = f"tcp://{scheduler}" if re.fullmatch(r"[\w.\[\]:-]+:\d+", scheduler) else _from_file(Path(scheduler))
    try:
        parts = urlsplit(address)
        _ = parts.hostname, parts.port
    except ValueError:
        raise WrongUse(f"--scheduler {scheduler}: {address!r} is no address such as tcp://127.0.0.1:8786") from None
    if not insecure and not _is_safe(address):
        raise WrongUse(
            f"--scheduler {scheduler}: {address} is plain and leads to another machine, and dask runs whatever it is "
            "sent; use tls:// or an ssh tunnel to 127.0.0.1, or say --insecure where you trust everyone on the network"
        )
    return address


def _is_safe(address: str) -> bool:
    return urlsplit(address).scheme in SAFE or on_this_machine(address)


def on_this_machine(address: str) -> bool:
    """Whether it is a loopback address: nobody else can reach what listens there, or be reached."""
    host = urlsplit(address).hostname
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _from_file(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongUse(
            f"--scheduler {path}: is no address such as tcp://127.0.0.1:8786, not local:N, and no scheduler file "
            f"({error.strerror})"
        ) from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("address"), str) or "://" not in found["address"]:
        raise WrongUse(f"--scheduler {path}: is no scheduler file; `dask scheduler --scheduler-file` writes one")
    return found["address"]


Needs = Mapping[str, float]  # resource → how much of it a task takes, as in `dask worker --resources "GPU=1"`
LOOK = 2.0  # seconds between two looks at who is there, and by the caller at what has come of the work


class Crew:
    """As `ask`, which gives the scheduler's record of each worker, has told of late.

    A worker that dies is gone from that record until its nanny has started it again: so what nobody offers now, and
    somebody did since the run began, may come back.
    """

    def __init__(self, address: str, ask: Callable[[], dict[str, dict[str, Any]]]) -> None:
        self.address = address
        self._ask = ask
        self._workers: dict[str, dict[str, Any]] = {}
        self._looked = -LOOK
        self._kinds: dict[frozenset[tuple[str, float]], dict[str, float]] = {}

    def workers(self, anew: bool = False) -> dict[str, dict[str, Any]]:
        """Who is there, as of a moment ago. Raises what `ask` raises."""
        if anew or time.monotonic() - self._looked > LOOK:
            self._workers = self._ask()
            self._looked = time.monotonic()
            for worker in self._workers.values():
                self._kinds.setdefault(frozenset(worker["resources"].items()), dict(worker["resources"]))
        return self._workers

    @property
    def threads(self) -> int:
        """Of all workers together; 1 while there is none."""
        return max(1, sum(worker["nthreads"] for worker in self.workers().values()))

    @property
    def kinds(self) -> list[dict[str, float]]:
        """The resources that a worker declares, each set once, of all workers seen since the run began."""
        self.workers()
        return list(self._kinds.values())

    @property
    def offers(self) -> dict[str, float]:
        """The resources that workers have declared since the run began, and the most that any one has."""
        return _most(self.kinds)

    def able(self, needs: Needs) -> bool:
        """Whether any worker that is there has all of it."""
        return any(_has(worker["resources"], needs) for worker in self.workers().values())

    def ever_able(self, needs: Needs) -> bool:
        """Whether any worker had all of it since the run began."""
        if not needs or any(_has(kind, needs) for kind in self.kinds):
            return True
        self.workers(anew=True)  # it may have come in this moment
        return any(_has(kind, needs) for kind in self.kinds)

    def lacking(self, needs: Needs) -> str:
        """What is missing now, for the beginning of a sentence."""
        if not needs or not self._workers:
            return f"no worker has come to the dask scheduler at {self.address}"
        there = _listed(_most(worker["resources"] for worker in self._workers.values())) or "nothing"
        return f"no dask worker at {self.address} offers {_listed(needs)} (they offer {there})"

    def way_out(self, needs: Needs) -> str:
        """How to start a worker that has it, and that listens no wider than the scheduler."""
        host = "127.0.0.1" if on_this_machine(self.address) else "ITS_ADDRESS"
        command = f"dask worker {self.address} --host {host} --dashboard-address 127.0.0.1:0 --nthreads 1"
        if self.address.startswith("tls:"):
            command += " --tls-ca-file FILE --tls-cert FILE --tls-key FILE"
        return f'start one by `{command} --resources "{_listed(needs)}"`' if needs else f"start some by `{command}`"


def _most(kinds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind in kinds:
        for name, amount in kind.items():
            found[name] = max(amount, found.get(name, 0.0))
    return found


def _has(resources: Mapping[str, float], needs: Needs) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in needs.items())


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources.items())


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


ANSWER = 5.0  # seconds that all workers have to take the plugin: a frozen one never answers, and shall not be awaited
# A cluster of its own forgives a task two deaths (dask: 3), waits for a worker that dies again and again (dask closes
# after 15 s what restarts it), starts a worker again that has been silent for a minute (dask: 5; it answers while it
# computes), and keeps the last 10 messages to each worker (dask 1000, and each holds a whole lease).
OWN = {
    "distributed.scheduler.worker-ttl": "1 minute",
    "distributed.scheduler.allowed-failures": 2,
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.admin.low-level-log-length": 10,
}


class Cluster:
    """A dask cluster, held for one run: a running one by its address or scheduler file, or `local:N` of its own.

    A cluster of its own has N processes of one thread, listens on 127.0.0.1 alone, and is gone when this is closed.
    What the tasks of the run hold open (`held`) is let go then. `patience` is how many seconds a cluster may be without
    any worker that could do what is left.
    """

    def __init__(self, scheduler: str, insecure: bool = False, patience: float = 60.0) -> None:
        check_scheduler(scheduler, insecure)
        self.own = local_workers(scheduler)
        self.address = scheduler if self.own else checked_address(scheduler, insecure)
        self.patience = patience
        self.crew = Crew(self.address, self._ask)
        self._stack = contextlib.ExitStack()
        self._client: Client

    def __enter__(self) -> "Cluster":
        import distributed  # noqa: F401 (whose loggers shall be quiet)

        try:
            self._stack.enter_context(_quiet())
            self._client = self._stack.enter_context(self._connect(self._stack))
            self._give_plugin()
            self._stack.callback(self._take_plugin)
            self._await_workers()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        with defer_sigint():  # a second Ctrl-C would leave processes, and dask's own words about them
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
        resource_tracker.ensure_running()  # begun later it would unblock what is blocked next
        try:
            with defer_sigint():  # so are the workers, also those that come later: a thread begun here starts them
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
                stack.enter_context(cluster)
        except (OSError, RuntimeError) as fault:
            raise SerError(
                f"--scheduler {self.address}: the workers did not start ({fault}); a script of your own needs "
                "`if __name__ == '__main__':`"
            ) from fault
        return Client(cluster, set_as_default=False)

    def _give_plugin(self) -> None:
        """To every worker, and whoever comes later. What a killed run left in its place is let go."""
        from distributed.protocol.pickle import dumps

        with contextlib.suppress(Exception):  # workers die at any moment; who misses this makes a plugin of its own
            self._tell(
                "register_worker_plugin", plugin=dumps(worker_cache.plugin()), name=worker_cache.NAME, idempotent=False
            )

    def _take_plugin(self) -> None:
        if self.own is None and self._client.status == "running":
            with contextlib.suppress(Exception):
                try:
                    self._tell("unregister_worker_plugin", name=worker_cache.NAME)
                except ValueError:  # the end of another run took it, and our workers made their own: make it known
                    self._give_plugin()
                    self._tell("unregister_worker_plugin", name=worker_cache.NAME)

    def _tell(self, what: str, **words: Any) -> None:
        self._client.sync(getattr(self._client.scheduler, what), callback_timeout=ANSWER, **words)

    def _await_workers(self) -> None:
        deadline = time.monotonic() + self.patience
        while not self.crew.workers(anew=True):
            if time.monotonic() > deadline:
                raise SerError(
                    f"{self.crew.lacking({})} in {self.patience:.0f} s; {self.crew.way_out({})} and run again"
                )
            time.sleep(0.2)

    def run(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        needs: Callable[[T], Needs] | None = None,
        split: Callable[[T], list[T] | None] | None = None,
        lost: Callable[[T, str], R] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Iterator[R]:
        """`function(task)` for every task, results as they come; `tasks` is read no further than the window.

        A task that kills its workers is cut by `split` into smaller ones (none at all where nothing is left to do);
        where that gives None, `lost(task, reason)` is its result, and without `lost` it is a `SerError`. `meanwhile`
        is called with every result, and every two seconds while there is none.

        Raises what the function raises, `WrongUse` at once for resources that no worker has had since the run began,
        and `SerError` if the scheduler is gone, or for longer than `patience` every worker that could do what is left.
        """
        window = Window(self, function, needs or (lambda task: {}), split, lost, meanwhile or (lambda: None))
        return window.run(tasks)

    def submit(self, function: Callable[[T], R], task: T, needs: Needs) -> "Future":
        """Hand one task to dask. Raises `WrongUse` if no worker has had what it needs since the run began."""
        if not self.crew.ever_able(needs):
            raise WrongUse(
                f"{self.crew.lacking(needs)}, and dask would wait for ever; {self.crew.way_out(needs)} and run again"
            )
        try:
            # pure=False: a task that ran before and is asked for again shall run again.
            return self._client.submit(function, task, pure=False, resources=dict(needs) or None)
        except (OSError, RuntimeError) as fault:
            raise self._gone() from fault

    def cancel(self, futures: list["Future"]) -> None:
        """Take back what no worker has begun. The scheduler may be gone: what runs there ends by itself."""
        with contextlib.suppress(Exception):
            self._client.cancel(futures)

    @property
    def offers(self) -> dict[str, float]:
        """The resources that workers have declared since the run began, and the most that any one has."""
        return self.crew.offers

    def deserted(self, needs: Needs) -> SerError:
        """For too long nobody has been there who has what is needed."""
        first = "" if self.own else f"{self.crew.way_out(needs)} and "
        return SerError(
            f"{self.crew.lacking(needs)} for {self.patience:.0f} s; what was finished is kept: {first}run again"
        )

    def _ask(self) -> dict[str, dict[str, Any]]:
        """The scheduler's record of its workers. Raises `SerError` if the scheduler is gone."""
        if self._client.status != "running":
            raise self._gone()
        try:
            return dict(self._client.scheduler_info(n_workers=-1)["workers"])  # some versions of dask give five
        except (OSError, RuntimeError, TimeoutError) as fault:
            raise self._gone() from fault

    def _gone(self) -> SerError:
        return SerError(
            f"the dask scheduler at {self.address} is gone; what was finished is kept: "
            "start it and its workers again, and run the same command"
        )


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
