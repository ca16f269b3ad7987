"""How long some runs will take: a few steps are timed before anything is trained."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .activations import largest_batch_bytes
from .data.dataset import Dataset
from .experiment import fit_groups
from .fit import Fitted, fit, rows_to_evaluate
from .fit_many import fit_many, runs_at_once
from .fit_solved import fit_candidates
from .job import Job
from .solved_candidates import list_candidates
from .targets import TARGETS
from .train_jobs import one_thread, oom_as_error

# Epochs that are timed, of so many batches each. The first epoch warms up.
TIMED_EPOCHS = 4
TIMED_BATCHES = 3
# Seconds of timed steps: if so many batches would take longer, the time of a single one counts.
ENOUGH_SECONDS = 0.5
# Utterances on which a model without a training loop is timed, at most.
TIMED_UTTERANCES = 500


@dataclass(frozen=True)
class Estimate:
    """How long some runs take, from a few timed steps."""

    parameters: int
    trained: int
    """How many of them train."""
    utterances: int
    runs: int
    epochs: int
    """Of a run, over all its stages."""
    updates: int
    """Over all runs."""
    seconds: float
    """Over all runs, one after the other."""
    at_most: bool
    """Whether patience may end a run before."""
    timed: bool
    """False where the time is scaled from that of other runs."""
    streamed: tuple[str, ...] = ()
    """The modalities that are read from the store as they are needed."""
    activations: int | None = None
    """Where an encoder trains, about the bytes that a batch of the longest utterances keeps for the
    backward pass."""


def estimate(jobs: Sequence[Job], paces: dict[str, float] | None = None) -> Estimate:
    """Parameters, updates and an estimate of the time, from a few timed steps of the first job.

    `paces` holds, by precision, the seconds that one row takes per parameter of a model.
    Experiments that share it, and whose jobs a GPU fits together, are timed once: the first of them
    writes there, and the time of the others is taken to grow with rows and parameters.
    """
    first = jobs[0]
    if first.config.fusion.solved:
        return estimate_solved(jobs)
    data = first.data
    config = first.config

    epochs = sum(getattr(config.settings, stage.epochs) for stage in config.fusion.stages)
    if config.training.refit:
        epochs *= 2

    updates = 0
    for job in jobs:
        batches = math.ceil(_training_units(job) / config.settings.batch_size)
        updates += batches * epochs

    if paces is None or not first.stacked:
        # Timed by itself.
        paces = {}
    with oom_as_error(config), one_thread(), _same_draws_after(config.device):
        model = _build(first)
        parameters = _count(model.parameters())
        trained = _count(weight for weight in model.parameters() if weight.requires_grad)
        activations = None
        if config.fusion.encoded:
            activations = largest_batch_bytes(first, model)
        # Before the next is built.
        del model
        timed = config.precision not in paces
        if timed:
            seconds_per_row = _time_rows(fit_groups(jobs)[0])
            paces[config.precision] = seconds_per_row / parameters

    rows = sum(rows_per_epoch(job) for job in jobs)
    seconds = paces[config.precision] * parameters * rows * epochs
    return Estimate(
        parameters=parameters,
        trained=trained,
        utterances=len(data.utterances),
        runs=len(jobs),
        epochs=epochs,
        updates=updates,
        seconds=seconds,
        at_most=config.training.patience > 0,
        timed=timed,
        streamed=_streamed(data),
        activations=activations,
    )


def estimate_solved(jobs: Sequence[Job]) -> Estimate:
    """The estimate of models without a training loop, by one candidate on a few utterances.

    Their epochs are candidates. The time of a fit is taken to grow with the utterances.
    """
    first = jobs[0]
    candidates = list_candidates(first.config, first.data)
    middle = candidates[len(candidates) // 2]

    train = first.fold.train
    spread = np.linspace(0, len(train) - 1, min(len(train), TIMED_UTTERANCES)).astype(int)
    fold = replace(first.fold, train=train[spread])
    # The solvers import it, which takes longer than a fit.
    import sklearn.linear_model  # noqa: F401

    with oom_as_error(first.config), one_thread():
        model = fit_candidates(first.data, fold, first.config, [middle])
    seconds_per_utterance = model.history[0].seconds / len(spread)

    utterances = sum(len(job.fold.train) for job in jobs)
    weights = model.model.state_dict()
    return Estimate(
        parameters=_count(weights.values()),
        trained=_count(weights.values()),
        utterances=len(first.data.utterances),
        runs=len(jobs),
        epochs=len(candidates),
        updates=0,
        seconds=seconds_per_utterance * utterances * len(candidates),
        at_most=False,
        timed=True,
        streamed=_streamed(first.data),
    )


def _streamed(data: Dataset) -> tuple[str, ...]:
    """The modalities that are read from the store as they are needed."""
    return tuple(modality for modality, inputs in data.inputs.items() if inputs.streamed)


def rows_per_epoch(job: Job) -> float:
    """The rows of all modalities that an epoch of a job reads, counted by what they cost.

    Those that it trains on count once for each view, those that it only evaluates a third.
    """
    data = job.data
    rows_of_utterance = np.zeros(len(data.utterances))
    for inputs in data.inputs.values():
        rows_of_utterance += np.diff(inputs.offsets)[: len(data.utterances)]

    trained = rows_of_utterance[job.fold.train].sum() * (len(data.views) + 1)
    evaluated = rows_of_utterance[rows_to_evaluate(job.fold, job.config)].sum()
    return float(trained + evaluated / 3)


def trial_job(job: Job, epochs: int, batches: int) -> Job:
    """The job cut down to so many epochs, and to so many batches spread over its training part.

    As large a share of the other parts is evaluated. The learning rate is 0: a run itself tells
    that its loss diverges.
    """
    config = job.config
    share = min(1, batches * config.settings.batch_size / _training_units(job))

    parts: dict[str, Any] = {}
    for part, rows in job.fold.parts.items():
        units = job.data.groups(rows, config.fusion.unit)
        count = math.ceil(share * len(units))
        spread = np.linspace(0, len(units) - 1, count).astype(int)
        # Starts with an empty array of the type of rows, as there may be none.
        parts[part] = np.concatenate([job.fold.train[:0], *(units[number] for number in spread)])

    settings: dict[str, Any] = {}
    for stage in config.fusion.stages:
        settings[stage.epochs] = epochs
        settings[stage.lr] = 0.0

    config = replace(
        config,
        settings=replace(config.settings, **settings),
        training=replace(config.training, refit=False),
    )
    return replace(job, fold=replace(job.fold, **parts), config=config)


def _training_units(job: Job) -> int:
    """What an epoch's batches are made of, dialogues or utterances, each once for each view."""
    units = job.data.groups(job.fold.train, job.config.fusion.unit)
    return len(units) * (len(job.data.views) + 1)


def _build(job: Job) -> nn.Module:
    """The model that a job trains."""
    config = job.config
    target = TARGETS[config.target]
    classes = len(job.data.utterances.classes)
    return target.build(config.fusion, config.settings, job.data.dims, classes)


def _count(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def _time_rows(jobs: Sequence[Job]) -> float:
    """The seconds that one row takes, of one of the runs that are fitted together.

    The fastest epoch counts: the first warms up, and others are disturbed by other processes. On a
    GPU one of them may capture what is replayed from then on.
    """
    seconds_per_row = 0.0
    for batches in (1, TIMED_BATCHES):
        trial = trial_job(jobs[0], TIMED_EPOCHS, batches)
        fastest = _fastest_epochs(_fit_trials(trial, jobs))
        if fastest:
            seconds_per_row = float(np.mean(fastest)) / rows_per_epoch(trial)
        if sum(fastest) * TIMED_BATCHES > ENOUGH_SECONDS:
            break
    return seconds_per_row


def _fit_trials(trial: Job, jobs: Sequence[Job]) -> list[Fitted]:
    """The trial trained as the jobs will be: all at once where they are stacked, else one alone."""
    configs = [replace(trial.config, seed=job.config.seed, loss=job.config.loss) for job in jobs]
    first = jobs[0]
    if first.stacked:
        at_once = runs_at_once(first.data, first.fold, first.config)
        fitted = fit_many(first.data, trial.fold, configs[:at_once])
        if fitted:
            return fitted

    return [fit(first.data, trial.fold, configs[0])]


def _fastest_epochs(fitted: Sequence[Fitted]) -> list[float]:
    """The seconds of the fastest epoch of each stage, but for the first epochs, which warm up."""
    fastest: dict[str, float] = {}
    for model in fitted:
        if model.fault:
            continue
        for epoch in model.history:
            if epoch.epoch > 1:
                before = fastest.get(epoch.stage, math.inf)
                fastest[epoch.stage] = min(epoch.seconds, before)
    return list(fastest.values())


@contextlib.contextmanager
def _same_draws_after(device: str) -> Iterator[None]:
    """What draws inside leaves torch's random numbers as they were, on the device too."""
    devices = [] if device == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=torch.device(device).type):
        yield
