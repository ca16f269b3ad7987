"""The workers of a dask cluster: who is there, what they declare to have, and what to say where that is not enough."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .address import on_this_machine

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
