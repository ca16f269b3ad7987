"""How long a sweep takes, before it starts."""

import math
from dataclasses import replace
from itertools import groupby
from statistics import fmean

from ..estimate import Estimate, estimate
from ..experiment import fit_groups
from .tasks import Sweep, SweepTask, prepare_once

# Candidates of a search that are timed for an estimate, at most.
TIMED_CANDIDATES = 5


def estimate_sweep(sweep: Sweep, workers: int) -> tuple[float, dict[str, Estimate]]:
    """Seconds of the open tasks with so many workers, and the estimate of each cell.

    A cell whose tasks another needs too is estimated with the first of them. Of a search's
    candidates a few are timed, evenly spread; of all that a GPU fits together, the first.
    """
    prepared = prepare_once()
    by_cell: dict[str, Estimate] = {}
    # Of the groups that a GPU fits together the first is timed, and `estimate` scales the others.
    paces: dict[str, float] = {}
    for cell, tasks in groupby(sweep.open_tasks, key=_cell_of):
        experiments = list(dict.fromkeys(task.experiment for task in tasks))
        step = math.ceil(len(experiments) / TIMED_CANDIDATES)
        estimates = []
        for experiment in experiments[::step]:
            group = fit_groups(prepared(experiment))[0]
            estimates.append(estimate(group, paces))

        mean_seconds = fmean(candidate.seconds for candidate in estimates)
        by_cell[cell] = replace(estimates[0], seconds=mean_seconds)

    seconds = 0.0
    for task in sweep.open_tasks:
        cell_estimate = by_cell[task.cell]
        seconds += cell_estimate.seconds / cell_estimate.runs

    # Where models train on GPUs, processes that share one count as one.
    at_once = min(workers, sweep.gpus) if sweep.precisions else workers
    return seconds / at_once, by_cell


def _cell_of(task: SweepTask) -> str:
    return task.cell
