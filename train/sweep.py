"""Run a recipe: every fold and seed of every cell once, in parallel, resumable at any moment."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ser import engines
from ser.cache.atomic_io import remove_leftovers, workspace
from ser.engines.machine import choose_device
from ser.errors import WrongUse

from .data import DataCache
from .experiment import Estimate, Experiment, Job, estimate, fit_groups, prepare, train_jobs
from .fit import Diverged
from .recipe import Recipe
from .run_folder import Run
from .settings import has_setting

GPU_WORKERS = 2  # one prepares and writes while the other trains
SHARED = ".tmp"  # in the folder of the runs: what the processes of a sweep share of the data


@dataclass(frozen=True)
class SweepTask:
    """One run to train: job number `number` of that experiment, in the folder `<out>/<name>`."""

    name: str
    cell: str  # the first cell that needs it
    experiment: Experiment
    number: int
    group: str = ""  # the same for tasks that can be fitted together
    shared: Path | None = None  # where processes of one machine share what they have loaded

    @property
    def run(self) -> Run:
        """Its folder."""
        return Run(Path(self.experiment.out) / self.name)


@dataclass(frozen=True)
class TaskGroup:
    """Tasks that are fitted together."""

    tasks: tuple[SweepTask, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return ", ".join(task.name for task in self.tasks)

    @classmethod
    def all_of(cls, tasks: Sequence[SweepTask]) -> "list[TaskGroup]":
        """The tasks in groups as large as can be."""
        return [cls(tuple(tasks[number] for number in numbers)) for numbers in fit_groups(tasks)]


@dataclass(frozen=True)
class Outcome:
    """A task that is done: the run, or what went wrong."""

    task: SweepTask
    fault: str | None = None


@dataclass(frozen=True)
class Sweep:
    """A recipe's runs: `tasks` are all that this shard trains, `runs` the folders that each cell needs."""

    recipe: Recipe
    tasks: tuple[SweepTask, ...]
    runs: dict[str, tuple[Run, ...]]
    on_gpu: bool = False

    def workers(self, cores: int) -> int:
        """How many processes serve it best: one per core, but few on a GPU, which all of them share."""
        return min(cores, GPU_WORKERS) if self.on_gpu else cores

    @property
    def open_tasks(self) -> list[SweepTask]:
        """What is not finished yet."""
        return [task for task in self.tasks if not task.run.finished]


@dataclass
class JobCache:
    """The jobs of experiments, each prepared once; what they read is kept."""

    data: DataCache = field(default_factory=DataCache)
    jobs: dict[Experiment, list[Job]] = field(default_factory=dict)

    def of(self, experiment: Experiment) -> list[Job]:
        if experiment not in self.jobs:
            self.jobs[experiment] = prepare(experiment, self.data)
        return self.jobs[experiment]


def plan_sweep(recipe: Recipe, shard: str | None = None, elsewhere: bool = False) -> Sweep:
    """Every run of the recipe, each once however many cells need it; `shard` "3/16" keeps every 16th from the third.

    With `elsewhere` the runs are for other machines to train, and this one need not have the device they are for.
    Reads what the store holds but loads no feature. Raises `WrongUse` naming the cell that cannot be run.
    """
    cache = JobCache()
    tasks: dict[str, SweepTask] = {}
    runs: dict[str, tuple[Run, ...]] = {}
    for cell in recipe.cells:
        experiment = replace(cell.experiment, resume=True)
        try:
            device = choose_device(experiment.device, here=not elsewhere)
            jobs = cache.of(replace(experiment, device="cpu" if elsewhere else device))
        except (WrongUse, LookupError) as fault:
            raise type(fault)(f"cell '{cell.name}': {fault}") from None
        if cell.test.startswith("only") and jobs[0].plan.fusion.hide is None:
            raise WrongUse(f"cell '{cell.name}': fusion {jobs[0].plan.fusion.name} cannot hide a modality")
        names = [job.name for job in jobs]
        for number, (name, job) in enumerate(zip(names, jobs, strict=True)):
            tasks.setdefault(name, SweepTask(name, cell.name, experiment, number, job.group))
        runs[cell.name] = tuple(tasks[name].run for name in names)
    firsts = [jobs[0] for jobs in cache.jobs.values()]
    for assignment in recipe.cells[0].experiment.also_set:
        if "=" not in assignment:
            raise WrongUse(f"--set {assignment}: must be key=value")
        if not any(has_setting(job.plan.fusion, assignment) for job in firsts):
            raise WrongUse(f"--set {assignment}: no fusion of this recipe has that setting; see ser train --settings")
    chosen = [task for group in _shard(TaskGroup.all_of(list(tasks.values())), shard) for task in group.tasks]
    return Sweep(recipe, tuple(chosen), runs, any(job.plan.device.startswith("cuda") for job in firsts))


def _shard(groups: Sequence[TaskGroup], shard: str | None) -> Sequence[TaskGroup]:
    if shard is None:
        return groups
    number, slash, of = shard.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise WrongUse(f"--shard {shard}: must be I/N with I from 1 to N, such as 3/16")
    return groups[int(number) - 1 :: int(of)]


def estimate_sweep(sweep: Sweep, workers: int) -> tuple[float, dict[str, Estimate]]:
    """Seconds of the open tasks with so many workers, and each experiment's estimate by the cell that asks first."""
    cache = JobCache()
    found: dict[Experiment, Estimate] = {}
    cells: dict[str, Estimate] = {}
    for task in sweep.open_tasks:
        if task.experiment not in found:
            jobs = cache.of(task.experiment)
            first = [jobs[number] for number in fit_groups(jobs)[0]]
            found[task.experiment] = cells[task.cell] = estimate(first, steps=2)
    seconds = sum(found[task.experiment].seconds_per_run for task in sweep.open_tasks)
    return seconds / (1 if sweep.on_gpu else workers), cells


def run_sweep(
    sweep: Sweep,
    workers: int = 1,
    scheduler: str | None = None,
    insecure: bool = False,
) -> Iterator[Outcome]:
    """Train what is open, here or on the dask cluster at `scheduler`, yielding each run as it is done.

    A run whose loss diverges is an outcome with a fault: the others go on. So is one that kills its dask worker.
    """
    groups = TaskGroup.all_of(sweep.open_tasks)
    if not groups:
        return
    if scheduler is not None:
        tasks = [replace(task, experiment=_with_absolute_paths(task.experiment)) for task in sweep.open_tasks]
        with engines.Cluster(scheduler, insecure) as cluster:
            gpu = {"GPU": 1.0} if "GPU" in cluster.offers else {}
            yield from cluster.run(
                train_alone, tasks, needs=lambda task: {} if task.experiment.device == "cpu" else gpu, lost=Outcome
            )
    elif workers <= 1:
        for group in groups:
            yield from train_group(group)
    else:
        out = Path(sweep.tasks[0].experiment.out) / SHARED
        remove_leftovers(out)
        with workspace(out) as folder:
            shared = [TaskGroup(tuple(replace(task, shared=folder) for task in group.tasks)) for group in groups]
            for outcomes in engines.run(train_group, shared, workers):
                yield from outcomes


def train_group(group: TaskGroup) -> list[Outcome]:
    """Fit the tasks of one group together. What they read is kept by the worker for the tasks that follow."""
    first = group.tasks[0]
    with engines.cached(("sweep", first.shared), lambda: JobCache(DataCache(first.shared))) as cache:
        jobs = [cache.of(task.experiment)[task.number] for task in group.tasks]
        runs = train_jobs(jobs, Path(first.experiment.out), resume=True)
    faults = [str(run) if isinstance(run, Diverged) else None for run in runs]
    return [Outcome(task, fault) for task, fault in zip(group.tasks, faults, strict=True)]


_alone = threading.Lock()


def train_alone(task: SweepTask) -> Outcome:
    """Train one task in a dask worker, which may have several threads: torch's seeds are the whole process's."""
    with _alone:
        [outcome] = train_group(TaskGroup((task,)))
    return outcome


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """The experiment for a process that works in another folder. The names of its runs stay the same."""

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
