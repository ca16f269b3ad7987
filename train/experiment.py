"""An experiment: the options of `ser train`, turned into one run per fold and seed.

for run in run_experiment(Experiment(features="is13", fusion="audio", protocol="speaker-out")):
    print(run.config.fold, run.result.ua)
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from ser.engines.machine import choose_device
from ser.errors import Diverged, WrongUse

from .config import TrainConfig
from .data.dataset import Dataset
from .data.dev_part import Cut
from .data.folds import Fold
from .data.loading import load_dataset
from .data.memory import DataCache
from .data.protocols import make_folds
from .effective_settings import effective
from .finetune import with_trained_encoders
from .fit import rows_to_evaluate
from .fit_many import MAX_RUNS
from .ingredients import auxiliary_task, check_ingredients
from .job import Job, OnProgress
from .models import Fusion
from .options import Experiment, check_options
from .rater_dropout import rater_dropout
from .run_config import make_run_config
from .run_folder import CONFIG, Run, load_run
from .settings import TrainingSettings, has_setting, parse_settings, setting_name
from .solved_candidates import check_solved, refits_by_default
from .targets import TARGETS
from .train_jobs import train_jobs

__all__ = ["run_experiment"]


def run_experiment(
    experiment: Experiment, on_progress: OnProgress | None = None, cache: DataCache | None = None
) -> list[Run]:
    """Train every fold and seed; runs that are finished already are not trained again."""
    return list(run_jobs(experiment, prepare(experiment, cache), on_progress))


def prepare(experiment: Experiment, cache: DataCache | None = None) -> list[Job]:
    """Load, cut and check: the experiment's jobs, fold by fold within each seed.

    Raises `WrongUse` for what cannot be trained, before anything is.
    """
    check_options(experiment)

    data, fusion = load_dataset(experiment, cache)
    settings, training = _parse_settings(experiment, fusion)
    training, data = TARGETS[experiment.target].prepare(fusion, settings, training, data)
    models = tuple(experiment.model)
    fusion, data = with_trained_encoders(fusion, settings, training, data, models)
    _check_standardising(settings, training, data)
    target = TARGETS[experiment.target]
    check_ingredients(
        fusion,
        training,
        has_sums=_has_sums(data),
        has_ratings=target.rated,
        learns_votes=target.voted or training.soft_labels,
    )

    folds = _cut_folds(experiment, training, data)
    if _refits_as_nothing_is_set(experiment, fusion, folds):
        training = replace(training, refit=True)
    _check_dev_is_there(experiment, training, folds)

    device = choose_device(experiment.device)
    precision = _choose_precision(experiment, fusion, device)
    if fusion.solved:
        # scikit-learn computes there, in float64.
        device = "cpu"
        precision = "float32"
    config = TrainConfig(
        fusion=fusion,
        settings=settings,
        training=training,
        target=experiment.target,
        loss=experiment.loss,
        select=experiment.select,
        device=device,
        precision=precision,
        log=experiment.log,
        deterministic=experiment.deterministic,
    )
    config = effective(config, folds, experiment.protocol)
    for fold in folds:
        # Refuses a selection on a dev part that is empty.
        rows_to_evaluate(fold, config)
        # Refuses an auxiliary head without two classes.
        auxiliary_task(data, fold, training, fusion)
    # Refuses a corpus without votes.
    rater_dropout(data, data, training)

    seeds = experiment.seeds
    if fusion.solved:
        check_solved(config, data)
        # All seeds would be the same run.
        seeds = 1

    jobs = []
    for seed in range(seeds):
        seeded = replace(config, seed=seed)
        for fold in folds:
            record = make_run_config(experiment, data, fold, seeded)
            jobs.append(Job(data, fold, with_epochs(seeded, data, fold), record))
    return jobs


def with_epochs(config: TrainConfig, data: Dataset, fold: Fold) -> TrainConfig:
    """The config with a number of epochs on that fold, where they follow from the updates."""
    settings = config.settings
    if config.fusion.updates is None or settings.epochs != "auto":
        return config

    units = len(data.groups(fold.train, config.fusion.unit)) * (len(data.views) + 1)
    updates_per_epoch = math.ceil(units / settings.batch_size)
    epochs = math.ceil(config.fusion.updates / updates_per_epoch)
    return replace(config, settings=replace(settings, epochs=epochs))


def _parse_settings(experiment: Experiment, fusion: Fusion) -> tuple[Any, TrainingSettings]:
    return parse_settings(fusion, _setting_texts(experiment, fusion), experiment.epochs)


def _setting_texts(experiment: Experiment, fusion: Fusion) -> list[str]:
    """The settings that are asked for, and of `also_set` those that the fusion has."""
    texts = list(experiment.set)
    for text in experiment.also_set:
        if has_setting(fusion, text):
            texts.append(text)
    return texts


def _refits_as_nothing_is_set(
    experiment: Experiment, fusion: Fusion, folds: Sequence[Fold]
) -> bool:
    """Whether the default of `refit` is true for this fusion, on folds that have a dev part."""
    asked = {setting_name(text) for text in _setting_texts(experiment, fusion)}
    if "refit" in asked or not refits_by_default(fusion, experiment.select):
        return False
    return all(len(fold.dev) > 0 for fold in folds)


def _check_standardising(settings: Any, training: TrainingSettings, data: Dataset) -> None:
    """Raise `WrongUse` for z-scores by corpus where there is one corpus, or no z-scores."""
    if training.standardise_by != "corpus":
        return

    z_scored = any(getattr(settings, f"standardise_{modality}", False) for modality in data.dims)
    if not (z_scored and data.utterances.corpora):
        raise WrongUse(
            "--set standardise_by=corpus needs several corpora (--corpus A+B) and features that "
            "are z-scored (standardise_audio=true); leave it out"
        )


def _has_sums(data: Dataset) -> bool:
    """Whether the model sees a learned sum of several layers."""
    for record in data.record.features.values():
        for layers, _ in record.sums or []:
            if layers > 1:
                return True
    return False


def _cut_folds(experiment: Experiment, training: TrainingSettings, data: Dataset) -> list[Fold]:
    """The folds of the protocol, all or the first `--folds`."""
    dev = training.dev
    if dev == "auto" and experiment.select != "val" and experiment.protocol != "random-70-20-10":
        # Not needed. A protocol that names its own dev part has it all the same.
        dev = "none"
    folds = make_folds(experiment.protocol, data.utterances, Cut(dev, training.cut_seed))

    if experiment.folds == "all":
        return folds
    if not re.fullmatch("0*[1-9][0-9]{0,8}", str(experiment.folds)):
        raise WrongUse(
            f"--folds {experiment.folds}: must be all, or how many of the first folds to run"
        )
    return folds[: int(experiment.folds)]


def _check_dev_is_there(
    experiment: Experiment, training: TrainingSettings, folds: Sequence[Fold]
) -> None:
    """Raise `WrongUse` for a setting that needs scores on dev, where there are none."""
    all_have_dev = all(len(fold.dev) > 0 for fold in folds)
    if training.refit and (experiment.select != "val" or not all_have_dev):
        raise WrongUse(
            "refit=true trains again for the epochs that dev chose: it needs --select val and a "
            "dev part"
        )

    if training.patience and experiment.select == "last":
        raise WrongUse(
            "patience waits for a score to rise, and --select last looks at none; use --select val"
        )


def _choose_precision(experiment: Experiment, fusion: Fusion, device: str) -> str:
    """float32 or bf16; "auto" is bf16 for sequences on a GPU that computes in it."""
    precision = experiment.precision
    if precision == "auto":
        precision = "float32"
        on_cuda = device.startswith("cuda")
        takes_rows = fusion.level == "sequence" or fusion.encoded
        if takes_rows and on_cuda and _computes_in_bf16():
            precision = "bf16"

    if device == "mps" and precision == "bf16":
        raise WrongUse(
            "--precision bf16 is for a CPU and for CUDA; leave it out, or add --device cpu"
        )
    return precision


def _computes_in_bf16() -> bool:
    """Whether this machine's GPU has units for bf16, and does not emulate it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def prepare_resumed(path: Path | str) -> tuple[Experiment, list[Job]]:
    """The experiment that a run folder was made for, and that run's job alone, to go on with.

    Raises `WrongUse` if the folder is not a run, or what it was made from is no longer the same.
    """
    run = load_run(path)
    experiment = _recorded_experiment(run)
    jobs = [job for job in prepare(experiment) if job.name == run.path.name]
    if not jobs:
        raise WrongUse(
            f"{run.path}: the store, the defaults or ser itself have changed since this run began, "
            "so it would be another run; train it anew by the command that you want"
        )
    return experiment, jobs


def _recorded_experiment(run: Run) -> Experiment:
    """The experiment that the run's config.json names, on the store where that was."""
    provenance = run.config.provenance
    names = {field.name for field in fields(Experiment)}
    options: dict[str, Any] = {}
    for name, value in provenance.asked.items():
        if name in names:
            # JSON has no tuples.
            options[name] = tuple(value) if isinstance(value, list) else value

    options["store"] = provenance.store
    options["out"] = run.path.parent
    options["resume"] = True
    try:
        return Experiment(**options)
    except TypeError:
        raise WrongUse(
            f"{run.path / CONFIG}: does not hold the options of the run; train it anew by the "
            "command that you want"
        ) from None


def run_jobs(
    experiment: Experiment, jobs: Sequence[Job], on_progress: OnProgress | None = None
) -> Iterator[Run]:
    """Train the jobs one group after the other, yielding each run as it is finished.

    Raises `Diverged` for a run whose loss is no longer a number.
    """
    for group in fit_groups(jobs):
        trained = train_jobs(group, Path(experiment.out), experiment.resume, on_progress)
        for job, run in zip(group, trained, strict=True):
            if isinstance(run, Diverged):
                raise run
            if on_progress is not None:
                on_progress(job, None)
            yield run


class HasGroup(Protocol):
    """A job, or a task of a sweep: those of one group are fitted together."""

    @property
    def group(self) -> str: ...


Grouped = TypeVar("Grouped", bound=HasGroup)


def fit_groups(runs: Iterable[Grouped]) -> list[list[Grouped]]:
    """Jobs or tasks, cut into those that are fitted together: of one group, at most `MAX_RUNS`."""
    by_group: dict[str, list[Grouped]] = {}
    for run in runs:
        by_group.setdefault(run.group, []).append(run)

    cut = []
    for group in by_group.values():
        for first in range(0, len(group), MAX_RUNS):
            cut.append(group[first : first + MAX_RUNS])
    return cut
