"""A dask cluster: the connection to it, held for one run."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ser.cache.errors import SerError, WrongUse

from . import held
from .address import check_scheduler, checked_address, local_workers
from .crew import Crew, Needs
from .interrupt import undisturbed
from .window import Window

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
R = TypeVar("R")

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
        with undisturbed():  # a second Ctrl-C would leave processes, and dask's own words about them
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
            with undisturbed():  # so are the workers, also those that come later: a thread begun here starts them
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
            self._tell("register_worker_plugin", plugin=dumps(held.plugin()), name=held.NAME, idempotent=False)

    def _take_plugin(self) -> None:
        if self.own is None and self._client.status == "running":
            with contextlib.suppress(Exception):
                try:
                    self._tell("unregister_worker_plugin", name=held.NAME)
                except ValueError:  # the end of another run took it, and our workers made their own: make it known
                    self._give_plugin()
                    self._tell("unregister_worker_plugin", name=held.NAME)

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
