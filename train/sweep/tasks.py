"""The tasks of a sweep: every fold and seed of every cell once, whole or one shard of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from ser import engines
from ser.engines.machine import choose_device
from ser.errors import MissingRows, WrongUse

from ..config import TrainConfig
from ..data.memory import DataCache
from ..experiment import Experiment, Job, fit_groups, prepare
from ..run_folder import Run
from ..settings import has_setting
from .other_features import features_to_extract
from .recipe import Recipe
from .search_record import SearchRecord, cell_name

GPU_WORKERS = 5  # on one GPU: some lay batches out, read and write while others train


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


EndedTask = tuple[SweepTask, str | None]  # a task that has ended, and its fault, if any


@dataclass(frozen=True)
class Sweep:
    """A recipe's runs: `tasks` are all that this shard trains, `runs` the folders that each cell
    needs.
    """

    recipe: Recipe
    tasks: tuple[SweepTask, ...]
    runs: dict[str, tuple[Run, ...]]
    precisions: tuple[str, ...] = ()  # of the models that a GPU here trains
    searches: tuple[tuple[Path, SearchRecord], ...] = ()  # what to write where

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
    searches: list[tuple[Path, SearchRecord]] = []
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
                record = SearchRecord(
                    recipe.file, list(cell.over), [cell_name(jobs[0].config) for jobs in columns]
                )
                searches.append((Path(cell.experiment.out), record))
        except (WrongUse, LookupError) as fault:
            command = f"ser features CORPUS --features {','.join(features_to_extract(recipe))} --store {cell.experiment.store}"
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
        {(job.plan.seed, job.config.cut, job.plan.training.select_score) for job in jobs}
    ) > len(candidates[0]):
        raise WrongUse(
            "its candidates are not scored alike on dev; search neither dev nor select_score"
        )
    if len({job.name for job in jobs}) < len(jobs):
        raise WrongUse(
            "two candidates are one run; leave out a value that is there twice, or --set"
        )
