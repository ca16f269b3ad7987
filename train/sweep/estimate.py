"""How long a sweep takes, before it starts."""

from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from statistics import fmean

from ..experiment import Estimate, estimate, fit_groups
from .tasks import Sweep, prepare_once

TIMED = 5  # candidates of a search that are timed for an estimate


def estimate_sweep(sweep: Sweep, workers: int) -> tuple[float, dict[str, Estimate]]:
    """Seconds of the open tasks with so many workers, and the estimate of each cell that is the
    first to need one.

    Of a search's candidates, a few are timed, evenly spread; of all that a GPU fits together, the
    first.
    """
    prepared = prepare_once()
    cells: dict[str, Estimate] = {}
    paces: dict[str, float] = {}
    for name, tasks in groupby(sweep.open_tasks, key=attrgetter("cell")):
        experiments = list(dict.fromkeys(task.experiment for task in tasks))
        timed = map(prepared, experiments[:: -(-len(experiments) // TIMED)])
        estimates = [estimate(fit_groups(jobs)[0], paces) for jobs in timed]
        cells[name] = replace(estimates[0], seconds=fmean(each.seconds for each in estimates))
    ahead = [cells[task.cell] for task in sweep.open_tasks]
    seconds = sum(each.seconds / each.runs for each in ahead)
    return seconds / (min(workers, sweep.gpus) if sweep.precisions else workers), cells
