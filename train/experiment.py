"""An experiment: the options of `ser train`, turned into one run per fold and seed.

for run in run_experiment(Experiment(features="is13", fusion="audio", protocol="speaker-out")):
    print(run.config.fold, run.result.ua)
"""

import hashlib
import json
import math
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ser.engines.machine import choose_device, exact_arithmetic
from ser.errors import Diverged, WrongUse

from .config import TrainConfig
from .data.dataset import Dataset
from .data.dev_part import SHARE, Cut
from .data.folds import Fold
from .data.loading import load_dataset
from .data.memory import DataCache
from .data.protocols import make_folds
from .finetune import with_encoder
from .fit import Fitted, fit, rows_to_evaluate
from .fit_many import MOST, fit_many, runs_at_once
from .models import FUSIONS
from .options import Experiment, check_options
from .records import Provenance, RunConfig
from .run import Job, OnProgress, one_thread, oom_as_error, train_jobs
from .run_folder import CONFIG, Run, load_run
from .settings import has_setting, parse_settings, settings_to_record
from .targets import TARGETS

__all__ = ["run_experiment"]

TRAIN_VERSION = 1  # raised when the same config would give other numbers than before
IN_FLOAT32 = (
    "bc-lstm",
    "catf-lstm",
    "cma",
    "cme",
    "gban",
)  # their recurrent layers, with bf16 since version 2
STEPS, EPOCHS = (
    3,
    4,
)  # batches that are timed for an estimate, and how often: the first time warms up
PRODUCT = 4096  # rows and columns of the matrices that a GPU is timed on
ENOUGH = 0.5  # seconds of timed steps: if they would take more, one step is timed


def prepare(experiment: Experiment, cache: DataCache | None = None) -> list[Job]:
    """Load, cut and check: the experiment's runs, fold by fold within each seed. Raises `WrongUse`."""
    check_options(experiment)
    data, fusion = load_dataset(experiment, cache)
    also = [assignment for assignment in experiment.also_set if has_setting(fusion, assignment)]
    settings, training = parse_settings(fusion, [*experiment.set, *also], experiment.epochs)
    training, data = TARGETS[experiment.target].settled(fusion, settings, training, data)
    if getattr(settings, "finetune_layers", 0) != 0:
        fusion, data = with_encoder(fusion, settings, data, experiment.model)
    z_scored = any(getattr(settings, f"standardise_{modality}", False) for modality in data.dims)
    if training.standardise_by == "corpus" and not (z_scored and data.utterances.corpora):
        needed = (
            "several corpora (--corpus A+B) and features that are z-scored (standardise_audio=true)"
        )
        raise WrongUse(f"--set standardise_by=corpus needs {needed}; leave it out")
    dev = training.dev
    if dev == "auto" and experiment.select != "val" and experiment.protocol != "random-70-20-10":
        dev = "none"  # but a protocol that names its own dev part always has it
    folds = make_folds(experiment.protocol, data.utterances, Cut(dev, training.cut_seed))
    if experiment.folds != "all":
        if not re.fullmatch("0*[1-9][0-9]{0,8}", str(experiment.folds)):
            raise WrongUse(
                f"--folds {experiment.folds}: must be all, or how many of the first folds to run"
            )
        folds = folds[: int(experiment.folds)]
    if training.refit and (experiment.select != "val" or not all(len(fold.dev) for fold in folds)):
        raise WrongUse(
            "refit=true trains again for the epochs that dev chose: it needs --select val and a dev part"
        )
    if training.patience and experiment.select == "last":
        raise WrongUse(
            "patience waits for a score to rise, and --select last looks at none; use --select val"
        )
    device, precision = choose_device(experiment.device), experiment.precision
    if precision == "auto":
        frames = fusion.level == "sequence" and device.startswith("cuda")
        precision = (
            "bf16"
            if frames and torch.cuda.is_bf16_supported(including_emulation=False)
            else "float32"
        )
    if device == "mps" and precision == "bf16":
        raise WrongUse(
            "--precision bf16 is for a CPU and for CUDA; leave it out, or add --device cpu"
        )
    options = {
        name: getattr(experiment, name)
        for name in ("target", "loss", "select", "log", "deterministic")
    }
    plan = TrainConfig(fusion, settings, training, device=device, precision=precision, **options)
    for fold in folds:
        rows_to_evaluate(
            fold, plan
        )  # refuses a selection on a dev part that is empty, before anything is trained
    jobs = []
    for seed in range(experiment.seeds):
        seeded = replace(plan, seed=seed)
        jobs += [Job(data, fold, seeded, _config(experiment, data, fold, seeded)) for fold in folds]
    return jobs


def _config(experiment: Experiment, data: Dataset, fold: Fold, plan: TrainConfig) -> RunConfig:
    """The run's complete config: all that can change its numbers, and where it came from."""
    ids = {part: [data.utterances.ids[row] for row in rows] for part, rows in fold.parts.items()}
    protocol, colon, file = experiment.protocol.partition(":")
    training = settings_to_record(plan.training)
    if training["dev"] == "auto" and fold.dev_by.startswith(SHARE):
        training["dev"] = (
            SHARE  # what auto meant before was the next session: those runs are not of this cell
        )
    package, module = (
        FUSIONS.package(plan.fusion.name),
        sys.modules[plan.fusion.settings.__module__],
    )
    code = (
        Path(str(module.__file__)).read_bytes() if package else b""
    )  # edited, it is another model
    options = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(experiment).items()
    }
    provenance = Provenance(
        **data.notes,
        asked=options,
        device=plan.device,
        package=package or None,
        versions={"python": platform.python_version(), "torch": str(torch.__version__)},
    )
    return RunConfig(
        version=TRAIN_VERSION + (plan.precision == "bf16" and plan.fusion.name in IN_FLOAT32),
        **data.record,
        fusion=plan.fusion.name,
        code=hashlib.sha256(code).hexdigest() if code else None,
        settings=settings_to_record(plan.settings),
        training=training,
        loss=plan.loss,
        # Wherever the file of folds lies.
        protocol=f"{protocol}:{Path(file).name}" if colon else protocol,
        fold=fold.name,
        cut=hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        select=plan.select,
        seed=plan.seed,
        precision=plan.precision,
        dims=data.dims,
        provenance=provenance,
    )


def resumed(path: Path | str) -> tuple[Experiment, list[Job]]:
    """The experiment that a run folder was made for, and that run's job alone, to go on with.

    Raises `WrongUse` if the folder is not a run, or what it was made from is no longer the same.
    """
    run = load_run(path)
    provenance = run.config.provenance
    try:
        recorded = {
            **provenance.asked,
            "store": provenance.store,
            "out": run.path.parent,
            "resume": True,
        }
        options = {
            name: recorded[name]
            for name in recorded.keys() & Experiment.__dataclass_fields__.keys()
        }
        lists = {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
        experiment = Experiment(**options | lists)
    except (KeyError, TypeError):
        what = "does not hold the options of the run"
        raise WrongUse(
            f"{run.path / CONFIG}: {what}; train it anew by the command that you want"
        ) from None
    jobs = [job for job in prepare(experiment) if job.name == run.path.name]
    if not jobs:
        what = "the store, the defaults or ser itself have changed since this run began, so it would be another run"
        raise WrongUse(f"{run.path}: {what}; train it anew by the command that you want")
    return experiment, jobs


def run_experiment(
    experiment: Experiment, on_progress: OnProgress | None = None, cache: DataCache | None = None
) -> list[Run]:
    """Train every fold and seed; runs that are finished already are not trained again."""
    return list(iterate(experiment, prepare(experiment, cache), on_progress))


def iterate(
    experiment: Experiment, jobs: list[Job], on_progress: OnProgress | None = None
) -> Iterator[Run]:
    """Train the jobs one after the other, yielding each run as it is finished. Raises `Diverged`."""
    for group in fit_groups(jobs):
        trained = train_jobs(group, Path(experiment.out), experiment.resume, on_progress)
        for job, run in zip(group, trained, strict=True):
            if isinstance(run, Diverged):
                raise run
            if on_progress is not None:
                on_progress(job, None)
            yield run


def fit_groups(runs: Iterable[Any]) -> list[list[Any]]:
    """The runs, cut into those that are fitted together: of the same `group`, at most `MOST` of
    them.
    """
    groups: dict[str, list[Any]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return [
        group[first : first + MOST]
        for group in groups.values()
        for first in range(0, len(group), MOST)
    ]


@dataclass(frozen=True)
class Estimate:
    """How long some runs take, from a few timed steps."""

    parameters: int
    utterances: int
    runs: int
    epochs: int  # per run
    updates: int  # over all runs
    seconds: float  # over all runs
    at_most: bool  # as patience may end a run before
    timed: bool  # or scaled from other runs
    streamed: tuple[str, ...] = ()  # the modalities that are read from the store as they are needed


def estimate(jobs: Sequence[Job], paces: dict[str, float] | None = None) -> Estimate:
    """Parameters, updates and an estimate of the time, from a few timed steps of the first of the
    jobs.

    Of jobs that a GPU fits together the steps are timed once for all experiments that share
    `paces`: the seconds of a row and a parameter, by precision. The time of the others is taken to
    grow with both.
    """
    job = jobs[0]
    plan, settings, data = job.plan, job.plan.settings, job.data
    epochs = settings.epochs * len(plan.fusion.stages) * (2 if plan.training.refit else 1)
    units = [
        len(j.data.groups(j.fold.train, plan.fusion.unit)) * (len(data.views) + 1) for j in jobs
    ]
    updates = sum(-(-n // settings.batch_size) for n in units) * epochs
    kind, gpu = torch.device(plan.device).type, [plan.device] * (plan.device != "cpu")
    with oom_as_error(plan), one_thread(), torch.random.fork_rng(gpu, device_type=kind):
        model = TARGETS[plan.target].build(
            plan.fusion, settings, data.dims, len(data.utterances.classes)
        )
        parameters = sum(weight.numel() for weight in model.parameters())
        del model
        known = paces if paces is not None and job.stacked else dict[str, float]()
        timed = plan.precision not in known
        if timed:
            known[plan.precision] = _seconds_per_row(fit_groups(jobs)[0]) / parameters
    seconds = known[plan.precision] * parameters * sum(map(_rows, jobs)) * epochs
    utterances, at_most = len(data.utterances), plan.training.patience > 0
    streamed = tuple(modality for modality, inputs in data.inputs.items() if inputs.streamed)
    return Estimate(
        parameters, utterances, len(jobs), epochs, updates, seconds, at_most, timed, streamed
    )


def _seconds_per_row(jobs: Sequence[Job]) -> float:
    """Of an epoch of one of the runs that are fitted together: the fastest on a few batches, as the
    first warms up.

    The others are disturbed by other processes; on a GPU one of them may capture what is replayed
    from then on.
    """
    job, per_row = jobs[0], 0.0
    for batches in (1, STEPS):
        trial, fitted = _trial(job, EPOCHS, batches), list[Fitted]()
        plans = [replace(trial.plan, seed=each.plan.seed, loss=each.plan.loss) for each in jobs]
        if job.stacked:
            fitted = fit_many(
                job.data, trial.fold, plans[: runs_at_once(job.data, job.fold, job.plan)]
            )
        fitted = fitted or [fit(job.data, trial.fold, plans[0])]
        fastest: dict[str, float] = {}  # by stage
        for line in [
            line for model in fitted if not model.fault for line in model.history if line.epoch > 1
        ]:
            fastest[line.stage] = min(line.seconds, fastest.get(line.stage, math.inf))
        seconds = [*fastest.values()]
        if seconds:
            per_row = float(np.mean(seconds) / _rows(trial))
        if sum(seconds) * STEPS > ENOUGH:
            break
    return per_row


def _trial(job: Job, epochs: int, batches: int) -> Job:
    """The job cut down to so many epochs, and to so many batches spread over its training part.

    As large a share of the other parts is evaluated. The rate is 0: a run itself tells that its
    loss diverges.
    """
    data, fold, plan = job.data, job.fold, job.plan
    settings = replace(plan.settings, epochs=epochs, lr=0.0)
    units = {part: data.groups(rows, plan.fusion.unit) for part, rows in fold.parts.items()}
    share = min(1, batches * settings.batch_size / (len(units["train"]) * (len(data.views) + 1)))
    parts = dict[str, Any]()
    for part, of in units.items():
        chosen = np.linspace(0, len(of) - 1, math.ceil(share * len(of))).astype(int)
        parts[part] = np.concatenate([fold.train[:0], *(of[i] for i in chosen)])
    plan = replace(plan, settings=settings, training=replace(plan.training, refit=False))
    return replace(job, fold=replace(fold, **parts), plan=plan)


def _rows(job: Job) -> float:
    """The rows of all modalities that an epoch trains on; those that it only evaluates cost about a
    third.
    """
    data, evaluated = job.data, rows_to_evaluate(job.fold, job.plan)
    lengths = [np.diff(inputs.offsets)[: len(data.utterances)] for inputs in data.inputs.values()]
    rows = np.sum(lengths, axis=0)  # of each utterance
    return rows[job.fold.train].sum() * (len(data.views) + 1) + rows[evaluated].sum() / 3


def count_flops(jobs: Sequence[Job], epochs: int) -> float:
    """Floating-point operations of the matrix products of jobs that differ in seed and fold alone.

    Those of the first are counted while it trains on one batch, in which nothing is hidden.
    """
    from torch.utils.flop_counter import FlopCounterMode

    trial = _trial(jobs[0], 1, 1)
    plan = replace(trial.plan, fusion=replace(trial.plan.fusion, hide=None), select="last")
    trial = replace(trial, fold=replace(trial.fold, dev=trial.fold.dev[:0]), plan=plan)
    products = sdpa_kernel(SDPBackend.MATH)  # attention as products, which are known
    steps = torch.backends.cudnn.flags(enabled=False)  # so are the steps of recurrent layers
    counter = FlopCounterMode(display=False)
    with one_thread(), oom_as_error(plan), products, steps, counter:
        fit(trial.data, trial.fold, plan)
    per_row = counter.get_total_flops() / len(plan.fusion.stages) / _rows(trial)
    return per_row * sum(map(_rows, jobs)) * epochs


def product_rates(plan: TrainConfig) -> dict[str, float]:
    """FLOP/s that products of large matrices reach on the GPU of a run, by precision: float32, and
    its own.
    """
    if not plan.device.startswith("cuda"):
        return {}
    from torch.utils.benchmark import Timer  # which warms up, and waits for the GPU

    exact_arithmetic(plan.device, plan.deterministic)
    rates: dict[str, float] = {}
    for precision in dict.fromkeys(("float32", plan.precision)):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        x = torch.randn(PRODUCT, PRODUCT, dtype=dtype, device=plan.device)
        rates[precision] = 2 * PRODUCT**3 / Timer("x @ x", globals={"x": x}).timeit(20).mean
    return rates
