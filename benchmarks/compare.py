"""Two ways of doing the same thing, side by side in one run."""

import os
import time
from collections.abc import Callable
from typing import Any


def compare(
    what: str,
    plain: Callable[[], Any],
    ours: Callable[[], Any],
    target: float | None,
    rounds: int = 3,
    clock: Callable[[], float] = time.process_time,
    unit: str = "s CPU",
) -> dict[str, Any]:
    """The row of two ways, of each the least cost in interleaved rounds.

    The default clock counts the CPU time of this process and its threads, which other users of a
    shared machine disturb least; pass `children_time` when the work runs in child processes.
    """
    least_plain = float("inf")
    least_ours = float("inf")

    for _ in range(max(rounds, 1)):
        least_plain = min(least_plain, cost(plain, clock))
        least_ours = min(least_ours, cost(ours, clock))

    return row(what, least_plain, least_ours, unit, target)


def cost(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    """What `work` takes by this clock."""
    start = clock()
    work()
    return clock() - start


def row(what: str, plain: float, ours: float, unit: str, target: float | None) -> dict[str, Any]:
    """A row of `make bench`, as bench.json holds it.

    `ratio` is plain / ours: above 1, ours is cheaper. `target` is the least ratio that passes, None
    where the row is only for information.
    """
    return {
        "what": what,
        "plain": plain,
        "ours": ours,
        "unit": unit,
        "ratio": plain / ours,
        "target": target,
    }


def children_time() -> float:
    """CPU seconds of this process and of all its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
