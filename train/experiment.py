"""An experiment: what `ser train` is asked for, turned into one run per fold and seed.

for run in run_experiment(Experiment(features="is13", fusion="audio", protocol="speaker-out")):
    print(run.config["fold"], run.result["ua"])
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch

from ser.cache.errors import WrongUse, unknown

from .data import Dataset
from .finetune import with_encoder
from .fit import Diverged, Epoch
from .folds import Cut, Fold
from .load import load_dataset
from .loader import Loader
from .losses import LOSSES
from .memory import told_if_memory_ends
from .models import Fusion
from .options import Experiment
from .plan import SELECTIONS, Plan, Precision
from .protocols import make_folds
from .runs import CONFIG, Run, open_run, run_name
from .settings import has_setting, parse_settings
from .single import train_run, train_runs
from .tensorboard import check_log
from .together import MOST, can_train_together

# Raised when the same config would give other numbers than before.
TRAIN_VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One run to come."""

    data: Dataset
    fold: Fold
    plan: Plan
    config: dict[str, Any]  # complete, with provenance


@dataclass(frozen=True)
class Progress:
    """Told after each epoch and after each run (`epoch` is None then)."""

    run: int  # from 1
    runs: int
    fold: str
    seed: int
    epoch: Epoch | None
    seconds: float  # since the experiment started


def prepare(experiment: Experiment, loader: Loader | None = None) -> list[Job]:
    """Load, cut and check: the experiment's runs, fold by fold within each seed. Raises `WrongUse`."""
    if experiment.select not in SELECTIONS:
        raise unknown("selection", experiment.select, SELECTIONS)
    if experiment.precision not in get_args(Precision):
        raise unknown("precision", experiment.precision, get_args(Precision))
    check_log(experiment.log)
    if experiment.loss not in LOSSES:
        raise unknown("loss", experiment.loss, LOSSES)
    data, fusion = load_dataset(
        experiment.store,
        experiment.features,
        experiment.fusion,
        corpus=experiment.corpus,
        labels=experiment.labels,
        limit=experiment.limit,
        allow_missing=experiment.allow_missing,
        loader=loader,
        views=experiment.views,
    )
    also = [assignment for assignment in experiment.also_set if has_setting(fusion, assignment)]
    settings, training = parse_settings(fusion, [*experiment.set, *also], experiment.epochs)
    fusion, data = with_encoder(fusion, settings, data, experiment.model)
    dev = training.dev
    if dev == "auto":  # a protocol that names its own dev part always has it
        dev = "next" if experiment.select == "val" or experiment.protocol.startswith("random") else "none"
    folds = make_folds(experiment.protocol, data.utterances, Cut(dev, training.cut_seed))
    plan = Plan(
        fusion,
        settings,
        training,
        experiment.loss,
        experiment.select,  # type: ignore[arg-type]
        device=_device(experiment.device),
        precision=experiment.precision,  # type: ignore[arg-type]
        log=experiment.log,
    )
    return [
        Job(data, fold, replace(plan, seed=seed), _config(experiment, data, fusion, fold, replace(plan, seed=seed)))
        for seed in range(_count("seeds", experiment.seeds))
        for fold in folds[: _fold_count(experiment.folds, len(folds))]
    ]


def resumed(path: Path | str) -> tuple[Experiment, list[Job]]:
    """The experiment that a run folder was made for, and that run's job alone, to go on with.

    Raises `WrongUse` if the folder is no run, or what it was made from is no longer the same.
    """
    run = open_run(path)
    try:
        began = run.config["provenance"]
        asked: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in began["asked"].items()
            if name in Experiment.__dataclass_fields__
        }
        experiment = Experiment(**{**asked, "store": began["store"], "out": run.path.parent, "resume": True})
    except (KeyError, TypeError, AttributeError):
        raise WrongUse(
            f"{run.path / CONFIG}: does not say what the run was asked for; train it anew by the command that you want"
        ) from None
    jobs = [job for job in prepare(experiment) if run_name(job.config) == run.path.name]
    if not jobs:
        raise WrongUse(
            f"{run.path}: the store, the defaults or ser itself have changed since this run began, so it would be "
            "another run; train it anew by the command that you want"
        )
    return experiment, jobs


def run_experiment(
    experiment: Experiment,
    on_progress: Callable[[Progress], None] | None = None,
    loader: Loader | None = None,
) -> list[Run]:
    """Train every fold and seed; runs that are finished already are not trained again."""
    return list(iterate(experiment, prepare(experiment, loader), on_progress))


def iterate(
    experiment: Experiment, jobs: list[Job], on_progress: Callable[[Progress], None] | None = None
) -> Iterator[Run]:
    """Train the jobs one after the other, yielding each run as it is finished."""
    tell = on_progress or (lambda progress: None)
    started = time.monotonic()
    for numbers in at_once(jobs):
        some = [jobs[number] for number in numbers]
        here = [Progress(n + 1, len(jobs), jobs[n].fold.name, jobs[n].plan.seed, None, 0.0) for n in numbers]

        def on_epoch(i: int, epoch: Epoch, here: list[Progress] = here) -> None:
            tell(replace(here[i], epoch=epoch, seconds=time.monotonic() - started))

        for progress, run in zip(
            here, train_jobs(some, Path(experiment.out), experiment.resume, on_epoch), strict=True
        ):
            if isinstance(run, Diverged):
                raise run
            tell(replace(progress, seconds=time.monotonic() - started))
            yield run


def at_once(jobs: Sequence[Job]) -> list[list[int]]:
    """Which jobs are trained at once, by number."""
    return [[number for number, _ in some] for some in bundled(enumerate(jobs), lambda entry: bundle_name(entry[1]))]


def bundled(things: Iterable[T], name: Callable[[T], str]) -> list[list[T]]:
    """The things with the same name together, no more than can be trained at once."""
    found: dict[str, list[T]] = {}
    for thing in things:
        found.setdefault(name(thing), []).append(thing)
    return [some[first : first + MOST] for some in found.values() for first in range(0, len(some), MOST)]


def bundle_name(job: Job) -> str:
    """The same for jobs that can be trained at once: on a GPU those that differ in seed and loss alone."""
    if not _stacked(job):
        return run_name(job.config)
    return run_name({key: value for key, value in job.config.items() if key not in ("seed", "loss")})


def _stacked(job: Job) -> bool:
    return torch.device(job.plan.device).type == "cuda" and can_train_together(job.data, job.plan)


def train_jobs(
    jobs: Sequence[Job], out: Path, resume: bool, on_epoch: Callable[[int, Epoch], None] | None = None
) -> list[Run | Diverged]:
    """The runs of jobs that are trained at once, or of one; a run whose loss diverged is given by its fault."""
    job = jobs[0]
    with told_if_memory_ends(job.plan):
        if len(jobs) > 1 or _stacked(job):  # one alone too, so that a run's numbers do not hang on the others
            plans, configs = [job.plan for job in jobs], [job.config for job in jobs]
            return train_runs(job.data, job.fold, plans, configs, out, on_epoch)
        try:
            return [train_run(job.data, job.fold, job.plan, job.config, out, resume, on_epoch and partial(on_epoch, 0))]
        except Diverged as fault:
            return [fault]


def _config(experiment: Experiment, data: Dataset, fusion: Fusion, fold: Fold, plan: Plan) -> dict[str, Any]:
    """The run's complete config: all that can change its numbers, and where it came from."""
    ids = {part: [data.utterances.ids[row] for row in rows] for part, rows in fold.parts.items()}
    return {
        "version": TRAIN_VERSION,
        **data.described,
        "fusion": fusion.name,
        "settings": asdict(plan.settings),
        "training": asdict(plan.training),
        "loss": plan.loss,
        "protocol": _protocol_name(experiment.protocol),
        "fold": fold.name,
        "cut": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "select": plan.select,
        "seed": plan.seed,
        "precision": plan.precision,
        "dims": data.dims,
        "provenance": {
            **data.notes,
            "asked": {
                key: str(value) if isinstance(value, Path) else value for key, value in asdict(experiment).items()
            },
            "device": plan.device,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
    }


def _protocol_name(protocol: str) -> str:
    """The protocol without the folder that a file of folds lies in."""
    kind, colon, file = protocol.partition(":")
    return f"{kind}:{Path(file).name}" if colon else kind


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise WrongUse(f"--device {name}: cannot be used here ({str(error).splitlines()[0]})") from None
    return name


def _count(option: str, value: int) -> int:
    if value < 1:
        raise WrongUse(f"--{option} {value}: must be at least 1")
    return value


def _fold_count(folds: str | int, available: int) -> int:
    if folds == "all":
        return available
    try:
        return _count("folds", int(folds))
    except ValueError as error:
        if isinstance(error, WrongUse):
            raise
        raise WrongUse(f"--folds {folds}: must be all, or how many of the first folds to run") from None
