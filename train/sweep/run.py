"""Run a sweep: its open tasks, in parallel, here or on a cluster, resumable at any moment."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ser import engines
from ser.disk.leftovers import remove_leftovers
from ser.disk.workspace import workspace
from ser.errors import Diverged

from ..experiment import fit_groups
from ..options import Experiment
from ..run_folder import SHARED, Run
from ..train_jobs import train_jobs
from .tasks import EndedTask, Sweep, SweepTask, prepare_once

# A dask worker may have several threads, and torch's seeds are the whole process's.
_one_at_a_time = threading.Lock()


def run_sweep(
    sweep: Sweep,
    workers: int = 1,
    scheduler: str | None = None,
    insecure: bool = False,
    timeout: float | None = None,
) -> Iterator[EndedTask]:
    """Train the open tasks, here or on the dask cluster at `scheduler`, yielding each as it ends.

    A task whose loss diverges ends with a fault, and the others go on. So does one that kills its
    dask worker.
    """
    for out, record in sweep.searches:
        record.write(out)

    tasks = sweep.open_tasks
    if not tasks:
        return

    if scheduler is not None:
        yield from _run_on_cluster(tasks, scheduler, insecure, timeout)
    elif workers > 1:
        yield from _run_in_processes(tasks, workers)
    else:
        for group in fit_groups(tasks):
            yield from train_group(group)


def _run_in_processes(tasks: Sequence[SweepTask], workers: int) -> Iterator[EndedTask]:
    """Train the tasks in processes of this machine, which share the features they have loaded."""
    out = Path(tasks[0].experiment.out) / SHARED
    remove_leftovers(out)
    with workspace(out) as folder:
        tasks = [replace(task, shared=folder, workers=workers) for task in tasks]
        for ended in engines.run(train_group, fit_groups(tasks), workers):
            # It is still in use, and no leftover.
            os.utime(folder)
            yield from ended


def _run_on_cluster(
    tasks: Sequence[SweepTask], scheduler: str, insecure: bool, timeout: float | None
) -> Iterator[EndedTask]:
    """Train the tasks on a dask cluster. What asks for a GPU goes to workers that have one."""
    with engines.Cluster(scheduler, insecure, timeout) as cluster:
        gpu = {"GPU": 1.0} if any("GPU" in kind for kind in cluster.kinds) else {}
        tasks = [replace(task, experiment=_with_absolute_paths(task.experiment)) for task in tasks]
        if not gpu:
            tasks = [_alone_on_a_cpu(task) for task in tasks]

        def needs(group: Sequence[SweepTask]) -> dict[str, float]:
            return {} if group[0].experiment.device == "cpu" else gpu

        # A group that kills its worker is tried task by task.
        for ended in cluster.run(
            train_group, fit_groups(tasks), needs=needs, split=_split, lost=_lost
        ):
            yield from ended


def _alone_on_a_cpu(task: SweepTask) -> SweepTask:
    """A CPU fits no tasks together, so each that may run on one is a group of its own."""
    if task.experiment.device != "auto":
        return task
    return replace(task, group=task.name)


def _split(group: Sequence[SweepTask]) -> list[list[SweepTask]] | None:
    return [[task] for task in group] if len(group) > 1 else None


def _lost(group: Sequence[SweepTask], reason: str) -> list[EndedTask]:
    return [(task, reason) for task in group]


def train_group(tasks: Sequence[SweepTask]) -> Sequence[EndedTask]:
    """Fit the tasks of one group, together if this device does so.

    What they read is kept for the next tasks of this process.
    """
    first = tasks[0]
    reader = engines.cached(
        ("sweep", first.shared), lambda: prepare_once(first.shared, first.workers)
    )
    runs: list[Run | Diverged] = []
    with _one_at_a_time, reader as prepared:
        jobs = [prepared(task.experiment)[task.number] for task in tasks]
        for group in fit_groups(jobs):
            runs += train_jobs(group, Path(first.experiment.out), resume=True)

    ended: list[EndedTask] = []
    for task, run in zip(tasks, runs, strict=True):
        ended.append((task, str(run) if isinstance(run, Diverged) else None))
    return ended


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """The experiment for a process that works in another folder.

    The names of its runs stay the same.
    """
    labels = experiment.labels
    if Path(labels).is_file():
        labels = str(Path(labels).absolute())

    protocol = experiment.protocol
    if protocol.startswith("folds:"):
        file = Path(protocol.removeprefix("folds:"))
        protocol = f"folds:{file.absolute()}"

    models = []
    for entry in experiment.model:
        name, _, place = entry.partition("=")
        if Path(place).is_dir():
            place = str(Path(place).absolute())
        models.append(f"{name}={place}")

    return replace(
        experiment,
        store=Path(experiment.store).absolute(),
        out=Path(experiment.out).absolute(),
        labels=labels,
        protocol=protocol,
        model=tuple(models),
    )
