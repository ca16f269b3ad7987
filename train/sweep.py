"""Run a recipe: every fold and seed of every cell once, in parallel, resumable at any moment."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from ser import engines
from ser.cache.spec import parse_name
from ser.cache.store import open_store
from ser.disk.workspace import remove_leftovers, workspace
from ser.engines.machine import choose_device
from ser.errors import Diverged, MissingRows, WrongUse

from .data.dataset import DataCache
from .data.features import select_feature, select_features
from .data.splits import corpora_of
from .experiment import Estimate, Experiment, Job, estimate, fit_groups, prepare, train_jobs
from .models import FUSIONS
from .recipe import Recipe, Record, cell_name
from .run_folder import SHARED, Run
from .settings import TrainConfig, has_setting

GPU_WORKERS = 5  # on one GPU: some lay batches out, read and write while others train
TIMED = 5  # candidates of a search that are timed for an estimate


@dataclass(frozen=True)
class SweepTask:
    """One run to train: job number `number` of that experiment, in the folder `<out>/<name>`."""

    name: str
    cell: str  # the first cell that needs it
    experiment: Experiment
    number: int
    group: str = ""  # the same for tasks that are fitted together, or would be on a GPU elsewhere
    shared: Path | None = (
        None  # where processes of one machine share the features that they have loaded
    )
    workers: int = 1  # how many these are; they share one budget of memory

    @property
    def run(self) -> Run:
        """Its folder."""
        return Run(Path(self.experiment.out) / self.name)


Outcome = tuple[SweepTask, str | None]  # a task that has ended, and its fault, if any


@dataclass(frozen=True)
class Sweep:
    """A recipe's runs: `tasks` are all that this shard trains, `runs` the folders that each cell
    needs.
    """

    recipe: Recipe
    tasks: tuple[SweepTask, ...]
    runs: dict[str, tuple[Run, ...]]
    precisions: tuple[str, ...] = ()  # of the models that a GPU here trains
    searches: tuple[tuple[Path, Record], ...] = ()  # what to write where

    def workers(self, cores: int) -> int:
        """How many processes suit it: one per core, a few that share a GPU, or one on each of
        several GPUs.
        """
        return min(cores, self.gpus if self.gpus > 1 else GPU_WORKERS) if self.precisions else cores

    @property
    def gpus(self) -> int:
        """How many GPUs its workers share."""
        return max((engines.gpus(task.experiment.device) for task in self.tasks), default=1)

    @property
    def open_tasks(self) -> list[SweepTask]:
        """What is not finished yet."""
        return [task for task in self.tasks if not task.run.finished]


def prepare_once(shared: Path | None = None, workers: int = 1) -> Callable[[Experiment], list[Job]]:
    """`prepare`, which prepares each experiment once and keeps what it reads, see `DataCache`."""
    return cache(partial(prepare, cache=DataCache(shared, workers)))


def on_features(recipe: Recipe, features: str) -> Recipe:
    """The recipe with each cell's features replaced by those of `features`, "A+B", that have the
    same modality.

    A cell with views of a feature that is replaced is left out, and the note says so. Raises
    `WrongUse` for a feature that is named twice and if no cell is left, `MissingRows` for one that
    is not in the store.
    """
    cells = []
    for cell in recipe.cells:
        experiment, own = cell.experiment, cell.experiment.features.split("+")
        store = open_store(experiment.store)
        corpus = store.joined_manifest(
            corpora_of(str(experiment.protocol), experiment.corpus)
        ).corpus
        select_features(store, features, corpus)
        joined: dict[str, str] = {}  # the features of each modality
        for names in (own, features.split("+")):
            by_modality: dict[str, list[str]] = {}
            for name in names:
                with contextlib.suppress(
                    MissingRows
                ):  # of the recipe's own, it may be one that is replaced
                    by_modality.setdefault(select_feature(store, name, corpus).modality, []).append(
                        name
                    )
            joined |= {modality: "+".join(group) for modality, group in by_modality.items()}
        inputs = (
            FUSIONS[experiment.fusion].inputs
            if experiment.fusion in FUSIONS
            else (experiment.fusion,)
        )
        names = [joined[modality] for modality in inputs] if joined.keys() >= set(inputs) else own
        if not experiment.views or names[0] in own:  # views are of audio, which comes first
            cells.append(replace(cell, experiment=replace(experiment, features="+".join(names))))
    if not cells:
        raise WrongUse(
            f"--features {features}: every cell of {recipe.name} trains on views of the features it names"
        )
    left_out = (
        " Cells with views of what is replaced are left out."
        if len(cells) < len(recipe.cells)
        else ""
    )
    return replace(
        recipe,
        cells=tuple(cells),
        note=recipe.note + left_out,
        title=f"{recipe.title}, on {features}",
    )


def extracted(recipe: Recipe) -> list[str]:
    """What `ser features` computes for the cells to train on: rows, pooled in training, or the
    means of layers.
    """
    trained_on = "+".join(
        f"{cell.experiment.features}+{cell.experiment.views}" for cell in recipe.cells
    )
    names: dict[str, None] = {}
    for name in filter(None, trained_on.split("+")):
        feature, options, read, _ = parse_name(name)
        if read.get("pool") == "mean" and any(option.startswith("layers=") for option in options):
            options.append("pool=mean")
        names[f"{feature}:{','.join(options)}".rstrip(":")] = None
    return list(names)


def plan_sweep(recipe: Recipe, shard: str | None = None, elsewhere: bool = False) -> Sweep:
    """Every run of the recipe, each once however many cells need it; `shard` "3/16" keeps every
    16th from the third.

    With `elsewhere` other machines train the runs, and this one need not have their device. Reads
    the store's records but loads no feature, and checks the runs that are finished. Raises
    `WrongUse` naming the cell that cannot be run, and `CorruptStore` for a run that was altered.
    """
    prepared = prepare_once()
    tasks: dict[str, SweepTask] = {}
    runs: dict[str, tuple[Run, ...]] = {}
    plans: list[TrainConfig] = []
    searches: list[tuple[Path, Record]] = []
    for cell in recipe.cells:
        needed, columns = list[SweepTask](), list[list[Job]]()
        try:
            for candidate in cell.candidates:
                experiment = replace(
                    cell.experiment, set=(*cell.experiment.set, *candidate), resume=True
                )
                if (
                    elsewhere and experiment.precision == "auto"
                ):  # a run's name must not depend on who trains it
                    experiment = replace(experiment, precision="float32")
                device = choose_device(experiment.device, here=not elsewhere)
                jobs = prepared(replace(experiment, device="cpu" if elsewhere else device))
                if cell.over and not needed:
                    recipe.budget.check(
                        len(jobs) * len(cell.candidates) * len(recipe.cells), recipe.file
                    )
                plans.append(jobs[0].plan)
                columns.append(jobs)
                if elsewhere and experiment.device != "cpu":  # perhaps a GPU fits some together
                    jobs = [replace(job, plan=replace(job.plan, device="cuda")) for job in jobs]
                bundles = [f"{experiment.out}/{job.group}" for job in jobs]
                needed += [
                    SweepTask(job.name, cell.name, experiment, at, bundles[at])
                    for at, job in enumerate(jobs)
                ]
            if cell.test.startswith("only") and plans[-1].fusion.hide is None:
                raise WrongUse(f"fusion {plans[-1].fusion.name} cannot hide a modality")
            if cell.over:
                check_search(columns)
                record = Record(
                    recipe.file, list(cell.over), [cell_name(jobs[0].config) for jobs in columns]
                )
                searches.append((Path(cell.experiment.out), record))
        except (WrongUse, LookupError) as fault:
            command = f"ser features CORPUS --features {','.join(extracted(recipe))} --store {cell.experiment.store}"
            remedy = f"; for all cells: `{command}`" if isinstance(fault, MissingRows) else ""
            raise type(fault)(f"cell '{cell.name}': {fault}{remedy}") from None
        runs[cell.name] = tuple(tasks.setdefault(task.name, task).run for task in needed)
    for assignment in recipe.cells[0].experiment.also_set:
        if not any(has_setting(plan.fusion, assignment) for plan in plans):
            raise WrongUse(
                f"--set {assignment}: no fusion of this recipe has that setting; see ser train --settings"
            )
    groups = [[task] for task in tasks.values()] if elsewhere else fit_groups(tasks.values())
    if shard is not None:
        first, slash, of = shard.partition("/")
        if not (slash and first.isdecimal() and of.isdecimal() and 1 <= int(first) <= int(of)):
            raise WrongUse(f"--shard {shard}: must be I/N with I from 1 to N, such as 3/16")
        groups = groups[int(first) - 1 :: int(of)]
    chosen = tuple(task for group in groups for task in group)
    for task in chosen:
        if task.run.finished:
            task.run.checked()
    precisions = tuple(dict.fromkeys(plan.precision for plan in plans if plan.device != "cpu"))
    return Sweep(recipe, chosen, runs, precisions, tuple(searches))


def check_search(candidates: Sequence[Sequence[Job]]) -> None:
    """Raise `WrongUse` if the dev score cannot choose between the candidates, given by the jobs of
    each.
    """
    jobs = [job for column in candidates for job in column]
    if jobs[0].plan.select != "val":
        raise WrongUse("a search chooses by the score on dev, which needs --select val")
    if len(
        {(job.plan.seed, job.config["cut"], job.plan.training.select_score) for job in jobs}
    ) > len(candidates[0]):
        raise WrongUse(
            "its candidates are not scored alike on dev; search neither dev nor select_score"
        )
    if len({job.name for job in jobs}) < len(jobs):
        raise WrongUse(
            "two candidates are one run; leave out a value that is there twice, or --set"
        )


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


def run_sweep(
    sweep: Sweep, workers: int = 1, scheduler: str | None = None, insecure: bool = False
) -> Iterator[Outcome]:
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


def train_group(tasks: Sequence[SweepTask]) -> Sequence[Outcome]:
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
