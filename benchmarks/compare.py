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
    """Run both in interleaved rounds and keep each one's least cost.

    `ratio` is plain / ours: above 1, ours is cheaper. `target` is the least ratio that passes, None
    where the row is only for information. The default clock counts the CPU time of this process and
    its threads, which other users of a shared machine disturb least; pass `children_time` when the
    work runs in child processes.
    """
    costs: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(max(rounds, 1)):
        for name, way in (("plain", plain), ("ours", ours)):
            start = clock()
            way()
            costs[name].append(clock() - start)
    best = {name: min(times) for name, times in costs.items()}
    return {
        "what": what,
        "plain": best["plain"],
        "ours": best["ours"],
        "unit": unit,
        "ratio": best["plain"] / best["ours"],
        "target": target,
    }


def children_time() -> float:
    """CPU seconds of this process and of all its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
