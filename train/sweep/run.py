"""Run a recipe: every fold and seed of every cell once, in parallel, resumable at any moment."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ser import engines
from ser.disk.leftovers import remove_leftovers
from ser.disk.workspace import workspace
from ser.errors import Diverged

from ..experiment import Experiment, fit_groups, train_jobs
from ..run_folder import SHARED, Run
from .tasks import EndedTask, Sweep, SweepTask, prepare_once


def run_sweep(
    sweep: Sweep, workers: int = 1, scheduler: str | None = None, insecure: bool = False
) -> Iterator[EndedTask]:
    """Train the open tasks, here or on the dask cluster at `scheduler`, yielding each run as it is
    finished.

    A run whose loss diverges is an outcome with a fault: the others go on. So is one that kills its
    dask worker.
    """
    for out, record in sweep.searches:
        record.write(out)
    tasks = sweep.open_tasks
    if not tasks:
        return
    if scheduler is not None:
        with engines.Cluster(scheduler, insecure) as cluster:
            gpu = {"GPU": 1.0} if any("GPU" in kind for kind in cluster.kinds) else {}
            tasks = [
                replace(task, experiment=_with_absolute_paths(task.experiment)) for task in tasks
            ]
            if (
                not gpu
            ):  # each is trained alone, so each is a task, but for those that ask for a GPU
                tasks = [
                    replace(t, group=t.name) if t.experiment.device == "auto" else t for t in tasks
                ]
            for outcomes in cluster.run(
                train_group,
                fit_groups(tasks),
                needs=lambda group: {} if group[0].experiment.device == "cpu" else gpu,
                split=lambda group: [[task] for task in group] if len(group) > 1 else None,
                lost=lambda group, reason: [(task, reason) for task in group],
            ):
                yield from outcomes
    elif workers <= 1:
        for group in fit_groups(tasks):
            yield from train_group(group)
    else:
        out = Path(tasks[0].experiment.out) / SHARED
        remove_leftovers(out)
        with workspace(out) as folder:
            tasks = [replace(task, shared=folder, workers=workers) for task in tasks]
            for outcomes in engines.run(train_group, fit_groups(tasks), workers):
                os.utime(folder)  # still in use
                yield from outcomes


_alone = (
    threading.Lock()
)  # a dask worker may have several threads, and torch's seeds are the whole process's


def train_group(tasks: Sequence[SweepTask]) -> Sequence[EndedTask]:
    """Fit the tasks of one group, together if this device does so. What they read is kept for the
    next tasks.
    """
    first = tasks[0]
    reader = engines.cached(
        ("sweep", first.shared), lambda: prepare_once(first.shared, first.workers)
    )
    with _alone, reader as prepared:
        jobs, runs = (
            [prepared(task.experiment)[task.number] for task in tasks],
            list[Run | Diverged](),
        )
        for group in fit_groups(jobs):
            runs += train_jobs(group, Path(first.experiment.out), resume=True)
    return [
        (task, str(run) if isinstance(run, Diverged) else None)
        for task, run in zip(tasks, runs, strict=True)
    ]


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """The experiment for a process that works in another folder. The names of its runs stay the
    same.
    """
    labels, (kind, _, file) = Path(experiment.labels), experiment.protocol.partition(":")
    models = (entry.partition("=") for entry in experiment.model)
    return replace(
        experiment,
        store=Path(experiment.store).absolute(),
        out=Path(experiment.out).absolute(),
        labels=str(labels.absolute()) if labels.is_file() else experiment.labels,
        protocol=f"{kind}:{Path(file).absolute()}" if kind == "folds" else experiment.protocol,
        model=tuple(
            f"{name}={Path(at).absolute() if Path(at).is_dir() else at}" for name, _, at in models
        ),
    )
