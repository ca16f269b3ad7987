"""Run a recipe: every fold and seed of every cell once, in parallel, resumable at any moment."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ser import engines
from ser.cache.atomic_io import remove_leftovers, workspace
from ser.errors import WrongUse

from .data import Loader
from .experiment import Estimate, Experiment, Job, at_once, bundle_name, bundled, estimate, prepare, train_jobs
from .fit import Diverged, Epoch
from .recipe import Recipe
from .run_folder import Run, run_name
from .settings import has_setting

GPU_WORKERS = 2  # one prepares and writes while the other trains


@dataclass(frozen=True)
class Task:
    """One run to train: job number `number` of that experiment, in the folder `<out>/<name>`."""

    name: str
    cell: str  # the first cell that needs it
    experiment: Experiment
    number: int
    bundle: str = ""  # tasks of the same are trained at once
    estimated: float | None = None  # seconds
    shared: Path | None = None  # where processes of one machine share what they have loaded

    @property
    def run(self) -> Run:
        """Its folder."""
        return Run(Path(self.experiment.out) / self.name)


@dataclass(frozen=True)
class Outcome:
    """A task that is done: the run, or what went wrong."""

    task: Task
    fault: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Sweep:
    """A recipe's runs: `tasks` are all that this shard trains, `runs` the folders that each cell needs."""

    recipe: Recipe
    tasks: tuple[Task, ...]
    runs: dict[str, tuple[Run, ...]]
    on_gpu: bool = False

    def workers(self, cores: int) -> int:
        """How many processes serve it best: one per core, but few on a GPU, which all of them share."""
        return min(cores, GPU_WORKERS) if self.on_gpu else cores

    def seconds(self, tasks: Sequence[Task], workers: int) -> float:
        """The estimate of these tasks, run by so many processes."""
        return sum(task.estimated or 0.0 for task in tasks) / (1 if self.on_gpu else workers)

    @property
    def open_tasks(self) -> list[Task]:
        """What is not finished yet."""
        return [task for task in self.tasks if not task.run.finished]


def plan_sweep(
    recipe: Recipe, shard: str | None = None, loader: Loader | None = None, elsewhere: bool = False
) -> Sweep:
    """Every run of the recipe, each once however many cells need it; `shard` "3/16" keeps every 16th from the third.

    With `elsewhere` the runs are for other machines to train, and this one need not have the device they are for.
    Reads what the store holds but loads no feature. Raises `WrongUse` naming the cell that cannot be run.
    """
    loader = loader or Loader()
    known: dict[Experiment, list[Job]] = {}
    tasks: dict[str, Task] = {}
    runs: dict[str, tuple[Run, ...]] = {}
    for cell in recipe.cells:
        if cell.experiment not in known:
            try:
                device = "cpu" if elsewhere else cell.experiment.device
                known[cell.experiment] = prepare(replace(cell.experiment, resume=True, device=device), loader)
            except (WrongUse, LookupError) as fault:
                raise type(fault)(f"cell '{cell.name}': {fault}") from None
        jobs = known[cell.experiment]
        if cell.test.startswith("only") and jobs[0].plan.fusion.masking is None:
            raise WrongUse(f"cell '{cell.name}': fusion {jobs[0].plan.fusion.name} cannot hide a modality")
        names = [run_name(job.config) for job in jobs]
        for number, (name, job) in enumerate(zip(names, jobs, strict=True)):
            tasks.setdefault(name, Task(name, cell.name, cell.experiment, number, bundle_name(job)))
        runs[cell.name] = tuple(tasks[name].run for name in names)
    _refuse_unused([jobs[0] for jobs in known.values()], recipe.cells[0].experiment.also_set)
    chosen = [task for bundle in _shard(_bundles(list(tasks.values())), shard) for task in bundle.tasks]
    on_gpu = any(torch.device(job.plan.device).type == "cuda" for jobs in known.values() for job in jobs)
    return Sweep(recipe, tuple(chosen), runs, on_gpu)


def estimate_sweep(sweep: Sweep, loader: Loader | None = None) -> tuple[list[Task], dict[str, Estimate]]:
    """The open tasks with their estimated seconds, and each experiment's estimate by the cell that asks first."""
    loader = loader or Loader()
    found: dict[Experiment, Estimate] = {}
    cells: dict[str, Estimate] = {}
    tasks = []
    for task in sweep.open_tasks:
        if task.experiment not in found:
            jobs = prepare(task.experiment, loader)
            first = [jobs[number] for number in at_once(jobs)[0]]
            found[task.experiment] = cells[task.cell] = estimate(first, steps=2)
        tasks.append(replace(task, estimated=found[task.experiment].seconds_per_run))
    return tasks, cells


def run_sweep(
    sweep: Sweep,
    workers: int = 1,
    scheduler: str | None = None,
    on_epoch: Callable[[Task, Epoch], None] | None = None,
    insecure: bool = False,
) -> Iterator[Outcome]:
    """Train what is open, yielding each run as it is done; `on_epoch` is told of epochs if there is one worker.

    A run whose loss diverges is an outcome with a fault: the others go on. So is one that kills its dask worker.
    """
    bundles = _bundles(sweep.open_tasks)
    if not bundles:
        return
    if scheduler is not None:
        tasks = [replace(task, experiment=_anywhere(task.experiment)) for task in sweep.open_tasks]
        with engines.Cluster(scheduler, insecure) as cluster:
            gpu = {"GPU": 1.0} if "GPU" in cluster.offers else {}
            yield from cluster.run(
                train_alone, tasks, needs=lambda task: {} if task.experiment.device == "cpu" else gpu, lost=Outcome
            )
    elif workers <= 1:
        for bundle in bundles:
            yield from train_bundle(bundle, on_epoch)
    else:
        out = Path(sweep.tasks[0].experiment.out)
        remove_leftovers(out)
        with workspace(out) as folder:
            shared = [Bundle(tuple(replace(task, shared=folder) for task in bundle.tasks)) for bundle in bundles]
            for outcomes in engines.run(train_bundle, shared, workers):
                yield from outcomes


@dataclass(frozen=True)
class Bundle:
    """Tasks that are trained at once: on a GPU seeds and cells that differ in the loss alone, else one."""

    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return ", ".join(task.name for task in self.tasks)


def _bundles(tasks: Sequence[Task]) -> list[Bundle]:
    return [Bundle(tuple(some)) for some in bundled(tasks, lambda task: task.bundle)]


@dataclass
class _Known:
    """What a worker has read and prepared for one task, for the tasks that follow."""

    loader: Loader
    jobs: dict[Experiment, list[Job]] = field(default_factory=dict)

    def of(self, experiment: Experiment) -> list[Job]:
        if experiment not in self.jobs:
            self.jobs[experiment] = prepare(experiment, self.loader)
        return self.jobs[experiment]


def train_bundle(bundle: Bundle, on_epoch: Callable[[Task, Epoch], None] | None = None) -> list[Outcome]:
    """Train tasks of one bundle at once. What they read is held by the worker for the tasks that follow."""
    started = time.monotonic()
    tasks = bundle.tasks
    tell = (lambda i, epoch: on_epoch(tasks[i], epoch)) if on_epoch else None
    with engines.cached(("sweep", tasks[0].shared), lambda: _Known(Loader(tasks[0].shared))) as known:
        jobs = [known.of(replace(task.experiment, resume=True))[task.number] for task in tasks]
        runs = train_jobs(jobs, Path(tasks[0].experiment.out), True, tell)
    seconds = (time.monotonic() - started) / len(tasks)
    return [
        Outcome(task, str(run) if isinstance(run, Diverged) else None, seconds)
        for task, run in zip(tasks, runs, strict=True)
    ]


_alone = threading.Lock()


def train_alone(task: Task) -> Outcome:
    """Train one task in a dask worker, which may have several threads: torch's seeds are the whole process's."""
    with _alone:
        [outcome] = train_bundle(Bundle((task,)))
    return outcome


def _anywhere(experiment: Experiment) -> Experiment:
    """The experiment with its paths spelled out, for a process that works in another folder. Names stay the same."""

    def absolute(path: Path | str) -> str:
        return str(Path(path).absolute())

    labels, (kind, colon, file) = experiment.labels, experiment.protocol.partition(":")
    models = (entry.partition("=") for entry in experiment.model)
    return replace(
        experiment,
        store=absolute(experiment.store),
        out=absolute(experiment.out),
        labels=absolute(labels) if Path(labels).is_file() else labels,
        protocol=f"{kind}:{absolute(file)}" if colon else kind,
        model=tuple(f"{name}={absolute(at) if Path(at).is_dir() else at}" for name, _, at in models),
    )


def _shard(bundles: Sequence[Bundle], shard: str | None) -> Sequence[Bundle]:
    if shard is None:
        return bundles
    number, slash, of = shard.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise WrongUse(f"--shard {shard}: must be I/N with I from 1 to N, such as 3/16")
    return bundles[int(number) - 1 :: int(of)]


def _refuse_unused(jobs: Sequence[Job], assignments: Sequence[str]) -> None:
    for assignment in assignments:
        if "=" not in assignment:
            raise WrongUse(f"--set {assignment}: must be key=value")
        if not any(has_setting(job.plan.fusion, assignment) for job in jobs):
            raise WrongUse(f"--set {assignment}: no fusion of this recipe has that setting; see ser train --settings")
