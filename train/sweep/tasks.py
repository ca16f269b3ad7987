"""The tasks of a sweep: every fold and seed of every cell once, whole or one shard of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from ser import engines
from ser.cache.extract_command import extract_command
from ser.engines.machine import choose_device
from ser.errors import MissingRows, WrongUse

from ..config import TrainConfig
from ..data.memory import DataCache
from ..experiment import fit_groups, prepare
from ..job import Job
from ..options import Experiment
from ..run_folder import Run
from ..settings import has_setting
from .other_features import features_to_extract
from .recipe import Recipe, RecipeCell
from .search_record import SearchRecord, cell_name

# On one GPU: some lay batches out, read and write while others train.
GPU_WORKERS = 5


@dataclass(frozen=True)
class SweepTask:
    """One run to train: job number `number` of that experiment, in the folder `<out>/<name>`."""

    name: str
    cell: str
    """The first cell that needs it."""
    experiment: Experiment
    number: int
    group: str = ""
    """The same for tasks that are fitted together, or would be on a GPU elsewhere."""
    shared: Path | None = None
    """Where processes of one machine share the features that they have loaded."""
    workers: int = 1
    """How many these are; they share one budget of memory."""

    @property
    def run(self) -> Run:
        """Its folder."""
        return Run(Path(self.experiment.out) / self.name)


# A task that has ended, and its fault, if any.
EndedTask = tuple[SweepTask, str | None]


@dataclass(frozen=True)
class Sweep:
    """A recipe's runs."""

    recipe: Recipe
    tasks: tuple[SweepTask, ...]
    """All that this shard trains."""
    runs: dict[str, tuple[Run, ...]]
    """The folders that each cell needs, in whatever shard they are trained."""
    precisions: tuple[str, ...] = ()
    """Of the models that a GPU here trains, such as ("bf16",); none where all train on the CPU."""
    searches: tuple[tuple[Path, SearchRecord], ...] = ()
    """What to write into which folder of runs."""

    def workers(self, cores: int) -> int:
        """How many processes suit it.

        One per core, a few that share a GPU, or one on each of several GPUs.
        """
        if not self.precisions:
            return cores
        return min(cores, self.gpus if self.gpus > 1 else GPU_WORKERS)

    @property
    def gpus(self) -> int:
        """How many GPUs its workers share."""
        return max((engines.gpus(task.experiment.device) for task in self.tasks), default=1)

    @property
    def open_tasks(self) -> list[SweepTask]:
        """What is not finished yet."""
        return [task for task in self.tasks if not task.run.finished]


Prepare = Callable[[Experiment], list[Job]]


def prepare_once(shared: Path | None = None, workers: int = 1) -> Prepare:
    """`prepare`, which prepares each experiment once and keeps what it reads, see `DataCache`."""
    return cache(partial(prepare, cache=DataCache(shared, workers)))


def plan_sweep(recipe: Recipe, shard: str | None = None, elsewhere: bool = False) -> Sweep:
    """Every run of the recipe, each once however many cells need it.

    `shard` "3/16" keeps every 16th from the third. With `elsewhere` other machines train the runs,
    and this one need not have their device.

    Reads the store's records but loads no feature, and checks the runs that are finished. Raises
    `WrongUse` naming the cell that cannot be run, and `CorruptStore` for a run that was altered.
    """
    prepared = prepare_once()
    tasks: dict[str, SweepTask] = {}
    runs: dict[str, tuple[Run, ...]] = {}
    searches: list[tuple[Path, SearchRecord]] = []
    configs: list[TrainConfig] = []
    for cell in recipe.cells:
        try:
            planned = _plan_cell(recipe, cell, prepared, elsewhere)
        except (WrongUse, LookupError) as fault:
            raise type(fault)(
                f"cell '{cell.name}': {fault}{_remedy(fault, recipe, cell)}"
            ) from None

        configs += planned.configs
        if planned.search is not None:
            searches.append((Path(cell.experiment.out), planned.search))
        # Of a run that several cells need, the first one's task.
        runs[cell.name] = tuple(tasks.setdefault(task.name, task).run for task in planned.tasks)
    _check_also_set(recipe, configs)

    groups = [[task] for task in tasks.values()]
    if not elsewhere:
        groups = fit_groups(tasks.values())
    chosen: list[SweepTask] = []
    for group in _take_shard(groups, shard):
        chosen += group
    for task in chosen:
        if task.run.finished:
            task.run.checked()

    on_gpu = [config.precision for config in configs if config.device != "cpu"]
    return Sweep(
        recipe=recipe,
        tasks=tuple(chosen),
        runs=runs,
        precisions=tuple(dict.fromkeys(on_gpu)),
        searches=tuple(searches),
    )


@dataclass(frozen=True)
class _PlannedCell:
    tasks: list[SweepTask]
    """Candidate by candidate."""
    configs: list[TrainConfig]
    """Of each candidate's first job."""
    search: SearchRecord | None


def _plan_cell(
    recipe: Recipe, cell: RecipeCell, prepared: Prepare, elsewhere: bool
) -> _PlannedCell:
    tasks: list[SweepTask] = []
    by_candidate: list[list[Job]] = []
    for candidate in cell.candidates:
        experiment = replace(cell.experiment, set=(*cell.experiment.set, *candidate), resume=True)
        if elsewhere and experiment.precision == "auto":
            # A run's name must not depend on who trains it.
            experiment = replace(experiment, precision="float32")

        device = choose_device(experiment.device, here=not elsewhere)
        jobs = prepared(replace(experiment, device="cpu" if elsewhere else device))
        if cell.searched and not by_candidate:
            all_runs = len(jobs) * len(cell.candidates) * len(recipe.cells)
            recipe.budget.check(all_runs, recipe.file)
        by_candidate.append(jobs)
        tasks += _tasks_of(cell, experiment, jobs, elsewhere)

    configs = [jobs[0].config for jobs in by_candidate]
    fusion = configs[-1].fusion
    if cell.test.startswith("only") and fusion.hide is None:
        raise WrongUse(f"fusion {fusion.name} cannot hide a modality")

    search = None
    if cell.searched:
        check_search(by_candidate)
        names = [cell_name(jobs[0].record) for jobs in by_candidate]
        search = SearchRecord(recipe.file, list(cell.searched), names)
    return _PlannedCell(tasks, configs, search)


def _tasks_of(
    cell: RecipeCell, experiment: Experiment, jobs: Sequence[Job], elsewhere: bool
) -> list[SweepTask]:
    """The jobs of one candidate as tasks."""
    tasks = []
    for number, job in enumerate(jobs):
        grouped = job
        if elsewhere and experiment.device != "cpu":
            # Perhaps a GPU there fits some of them together.
            grouped = replace(job, config=replace(job.config, device="cuda"))
        group = f"{experiment.out}/{grouped.group}"
        tasks.append(SweepTask(job.name, cell.name, experiment, number, group))
    return tasks


def check_search(candidates: Sequence[Sequence[Job]]) -> None:
    """Raise `WrongUse` if the dev score cannot choose between the candidates.

    Each is given by its jobs, in the same order of folds and seeds.
    """
    jobs: list[Job] = []
    for jobs_of_candidate in candidates:
        jobs += jobs_of_candidate
    if jobs[0].config.select != "val":
        raise WrongUse("a search chooses by the score on dev, which needs --select val")

    # One for each fold and seed, if all candidates have the same dev part and score.
    ways_to_score = {
        (job.config.seed, job.record.cut, job.config.training.select_score) for job in jobs
    }
    if len(ways_to_score) > len(candidates[0]):
        raise WrongUse(
            "its candidates are not scored alike on dev; search neither dev nor select_score"
        )

    if len({job.name for job in jobs}) < len(jobs):
        raise WrongUse(
            "two candidates are one run; leave out a value that is there twice, or --set"
        )


def _remedy(fault: Exception, recipe: Recipe, cell: RecipeCell) -> str:
    """The command that computes what the recipe needs, if that is what a cell lacks."""
    if not isinstance(fault, MissingRows):
        return ""
    features = ",".join(features_to_extract(recipe))
    command = extract_command(cell.experiment.store, features, cell.experiment.corpus)
    return f"; for all cells: {command}"


def _check_also_set(recipe: Recipe, configs: Sequence[TrainConfig]) -> None:
    """Raise `WrongUse` for a setting of the command line that no cell's fusion has."""
    for text in recipe.cells[0].experiment.also_set:
        if not any(has_setting(config.fusion, text) for config in configs):
            raise WrongUse(
                f"--set {text}: no fusion of this recipe has that setting; see ser train --settings"
            )


def _take_shard(groups: list[list[SweepTask]], shard: str | None) -> list[list[SweepTask]]:
    """The groups that `--shard I/N` names: every N-th from the I-th."""
    if shard is None:
        return groups

    first, slash, count = shard.partition("/")
    numbers = slash and first.isdecimal() and count.isdecimal()
    if not (numbers and 1 <= int(first) <= int(count)):
        raise WrongUse(f"--shard {shard}: must be I/N with I from 1 to N, such as 3/16")
    return groups[int(first) - 1 :: int(count)]
