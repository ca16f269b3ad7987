"""An experiment: what `ser train` is asked for, turned into one run per fold and seed.

for run in run_experiment(Experiment(features="is13", fusion="audio", protocol="speaker-out")):
    print(run.config["fold"], run.result["ua"])
"""

import hashlib
import json
import math
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ser.engines.machine import choose_device, exact_arithmetic
from ser.errors import Diverged, WrongUse, unknown

from .data.dataset import DataCache, Dataset
from .data.features import load_dataset
from .data.splits import SHARE, Cut, Fold, make_folds
from .finetune import with_encoder
from .fit import Fitted, fit, rows_to_evaluate
from .fit_many import MOST, fit_many, runs_at_once
from .models import FUSIONS
from .options import Experiment
from .run import Job, OnProgress, one_thread, oom_as_error, train_jobs
from .run_folder import CONFIG, Run, open_run
from .settings import TrainConfig, described, has_setting, parse_settings
from .targets import TARGETS

__all__ = ["run_experiment"]

TRAIN_VERSION = 1  # raised when the same config would give other numbers than before
IN_FLOAT32 = ("bc-lstm", "catf-lstm", "cma", "cme", "gban")  # their recurrent layers, with bf16 since version 2
STEPS, EPOCHS = 3, 4  # batches that are timed for an estimate, and how often: the first time warms up
PRODUCT = 4096  # rows and columns of the matrices that a GPU is timed on
ENOUGH = 0.5  # seconds of timed steps: if they would take more, one says enough


def prepare(experiment: Experiment, cache: DataCache | None = None) -> list[Job]:
    """Load, cut and check: the experiment's runs, fold by fold within each seed. Raises `WrongUse`."""
    _check_options(experiment)
    data, fusion = load_dataset(experiment, cache)
    also = [assignment for assignment in experiment.also_set if has_setting(fusion, assignment)]
    settings, training = parse_settings(fusion, [*experiment.set, *also], experiment.epochs)
    training, data = TARGETS[experiment.target].settled(fusion, settings, training, data)
    if getattr(settings, "finetune_layers", 0) != 0:
        fusion, data = with_encoder(fusion, settings, data, experiment.model)
    scaled = any(getattr(settings, f"standardise_{modality}", False) for modality in data.dims)
    if training.standardise_by == "corpus" and not (scaled and data.utterances.corpora):
        so = "several corpora (--corpus A+B) and features that are z-scored, as by standardise_audio=true; leave it out"
        raise WrongUse(f"--set standardise_by=corpus needs {so}")
    dev = training.dev
    if dev == "auto" and experiment.select != "val" and experiment.protocol != "random-70-20-10":
        dev = "none"  # but a protocol that names its own dev part always has it
    folds = make_folds(experiment.protocol, data.utterances, Cut(dev, training.cut_seed))
    if experiment.folds != "all":
        if not re.fullmatch("0*[1-9][0-9]{0,8}", str(experiment.folds)):
            raise WrongUse(f"--folds {experiment.folds}: must be all, or how many of the first folds to run")
        folds = folds[: int(experiment.folds)]
    if training.refit and (experiment.select != "val" or not all(len(fold.dev) for fold in folds)):
        raise WrongUse("refit=true trains again for the epochs that dev chose: it needs --select val and a dev part")
    if training.patience and experiment.select == "last":
        raise WrongUse(
            "patience stops where a score no longer rises, and --select last looks at none; use --select val"
        )
    device, precision = choose_device(experiment.device), experiment.precision
    if precision == "auto":
        frames = fusion.level == "sequence" and device.startswith("cuda")
        precision = "bf16" if frames and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device == "mps" and precision == "bf16":
        raise WrongUse("--precision bf16 is for a CPU and for CUDA; leave it out, or add --device cpu")
    how = {name: getattr(experiment, name) for name in ("target", "loss", "select", "log", "deterministic")}
    plan = TrainConfig(fusion, settings, training, device=device, precision=precision, **how)
    for fold in folds:
        rows_to_evaluate(fold, plan)  # refuses a selection on a dev part that is empty, before anything is trained
    return [
        Job(data, fold, one, _config(experiment, data, fold, one))
        for one in (replace(plan, seed=seed) for seed in range(experiment.seeds))
        for fold in folds
    ]


def _check_options(experiment: Experiment) -> None:
    """Raise `WrongUse` for a value that its option does not take, here."""
    for option in fields(experiment):
        value, name, facts = getattr(experiment, option.name), option.name, experiment.TEXTS.get(option.name, {})
        several = get_origin(option.type) is tuple
        kind: Any = str if several else option.type
        for one in value if several and isinstance(value, tuple) else [value]:
            true = isinstance(one, bool) and kind is not bool  # True is a number for Python, and not for us
            if true or not isinstance(one, kind):
                raise WrongUse(f"{name}={str(value)[:200]!r}: must be {getattr(kind, '__name__', kind)}")
        if value is not None and value not in facts.get("choices", [value]):
            raise unknown(f"value of --{name}", value, facts["choices"])
        most = facts.get("most", 1_000_000_000)
        if isinstance(value, int) and not isinstance(value, bool) and not 1 <= value <= most:
            raise WrongUse(f"--{name} {value}: must be at least 1 and at most {most:,}")
    if experiment.log == "tensorboard" and find_spec("tensorboard") is None:
        raise WrongUse(
            "--log tensorboard: TensorBoard is not installed; `pip install 'ser-fusion[tensorboard]'` adds it, and "
            "without --log every run still writes its epochs to its file `log`"
        )


def _config(experiment: Experiment, data: Dataset, fold: Fold, plan: TrainConfig) -> dict[str, Any]:
    """The run's complete config: all that can change its numbers, and where it came from."""
    ids = {part: [data.utterances.ids[row] for row in rows] for part, rows in fold.parts.items()}
    protocol, colon, file = experiment.protocol.partition(":")
    training = described(plan.training)
    if training["dev"] == "auto" and fold.dev_by.startswith(SHARE):
        training["dev"] = SHARE  # what auto meant before was the next session: those runs are not of this cell
    package, module = FUSIONS.package(plan.fusion.name), sys.modules[plan.fusion.settings.__module__]
    code = Path(str(module.__file__)).read_bytes() if package else b""  # edited, it is another model
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(experiment).items()}
    return {
        "version": TRAIN_VERSION + (plan.precision == "bf16" and plan.fusion.name in IN_FLOAT32),
        **data.described,
        "fusion": plan.fusion.name,
        **({"code": hashlib.sha256(code).hexdigest()} if code else {}),
        "settings": described(plan.settings),
        "training": training,
        "loss": plan.loss,
        "protocol": f"{protocol}:{Path(file).name}" if colon else protocol,  # wherever the file of folds lies
        "fold": fold.name,
        "cut": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "select": plan.select,
        "seed": plan.seed,
        "precision": plan.precision,
        "dims": data.dims,
        "provenance": {
            **data.notes,
            "asked": asked,
            "device": plan.device,
            **({"package": package} if package else {}),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
    }


def resumed(path: Path | str) -> tuple[Experiment, list[Job]]:
    """The experiment that a run folder was made for, and that run's job alone, to go on with.

    Raises `WrongUse` if the folder is not a run, or what it was made from is no longer the same.
    """
    run = open_run(path)
    began = run.config["provenance"]
    try:
        asked: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in began["asked"].items()
            if name in Experiment.__dataclass_fields__
        }
        experiment = Experiment(**{**asked, "store": began["store"], "out": run.path.parent, "resume": True})
    except (KeyError, TypeError):
        raise WrongUse(
            f"{run.path / CONFIG}: does not say what the run was asked for; train it anew by the command that you want"
        ) from None
    jobs = [job for job in prepare(experiment) if job.name == run.path.name]
    if not jobs:
        raise WrongUse(
            f"{run.path}: the store, the defaults or ser itself have changed since this run began, so it would be "
            "another run; train it anew by the command that you want"
        )
    return experiment, jobs


def run_experiment(
    experiment: Experiment, on_progress: OnProgress | None = None, cache: DataCache | None = None
) -> list[Run]:
    """Train every fold and seed; runs that are finished already are not trained again."""
    return list(iterate(experiment, prepare(experiment, cache), on_progress))


def iterate(experiment: Experiment, jobs: list[Job], on_progress: OnProgress | None = None) -> Iterator[Run]:
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
    """The runs that are fitted together: those of the same `group`, at most `MOST` of them."""
    groups: dict[str, list[Any]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return [group[first : first + MOST] for group in groups.values() for first in range(0, len(group), MOST)]


@dataclass(frozen=True)
class Estimate:
    """What is ahead, from a few timed steps."""

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
    """Parameters, updates and an estimate of the time, from a few timed steps of the first of the jobs.

    Of jobs that a GPU fits together the steps are timed once for all experiments that share `paces`: the seconds of a
    row and a parameter, by precision. The time of the others is taken to grow with both.
    """
    job = jobs[0]
    plan, settings = job.plan, job.plan.settings
    epochs = settings.epochs * len(plan.fusion.stages) * (2 if plan.training.refit else 1)
    units = [len(j.data.groups(j.fold.train, plan.fusion.unit)) * (len(j.data.views) + 1) for j in jobs]
    updates = sum(-(-n // settings.batch_size) for n in units) * epochs
    kind, gpu = torch.device(plan.device).type, [plan.device] * (plan.device != "cpu")
    with oom_as_error(plan), one_thread(), torch.random.fork_rng(gpu, device_type=kind):
        classes = len(job.data.utterances.classes)
        model = TARGETS[plan.target].build(plan.fusion, settings, job.data.dims, classes)
        parameters = sum(weight.numel() for weight in model.parameters())
        del model
        known = paces if paces is not None and job.stacked else dict[str, float]()
        if timed := plan.precision not in known:
            known[plan.precision] = _seconds_per_row(fit_groups(jobs)[0]) / parameters
    seconds = known[plan.precision] * parameters * sum(map(_rows, jobs)) * epochs
    utterances, at_most = len(job.data.utterances), plan.training.patience > 0
    streamed = tuple(modality for modality, one in job.data.inputs.items() if one.streamed)
    return Estimate(parameters, utterances, len(jobs), epochs, updates, seconds, at_most, timed, streamed)


def _seconds_per_row(jobs: Sequence[Job]) -> float:
    """Of an epoch of one of the runs that are fitted together: the fastest on a few batches, as the first warms up.

    The others are disturbed by other processes; on a GPU one of them may capture what is replayed from then on.
    """
    job, found = jobs[0], 0.0
    for batches in (1, STEPS):
        trial, fitted = _trial(job, EPOCHS, batches), list[Fitted]()
        plans = [replace(trial.plan, seed=one.plan.seed, loss=one.plan.loss) for one in jobs]
        if job.stacked:
            fitted = fit_many(job.data, trial.fold, plans[: runs_at_once(job.data, job.fold, job.plan)])
        fitted = fitted or [fit(job.data, trial.fold, plans[0])]
        lines = [line for one in fitted if not one.fault for line in one.history if line["epoch"] > 1]
        stages = {line["stage"] for line in lines}
        seconds = [min(line["seconds"] for line in lines if line["stage"] == stage) for stage in stages]
        if seconds:
            found = float(np.mean(seconds) / _rows(trial))
        if sum(seconds) * STEPS > ENOUGH:
            break
    return found


def _trial(job: Job, epochs: int, batches: int) -> Job:
    """The job cut down to so many epochs, and to so many batches spread over its training part.

    As large a share of the other parts is evaluated. The rate is 0: a run itself tells that its loss diverges.
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
    """The rows of all modalities that an epoch trains on; those that it only evaluates cost about a third."""
    data, evaluated = job.data, rows_to_evaluate(job.fold, job.plan)
    offsets = [one.offsets[: len(data.utterances) + 1] for one in data.inputs.values()]
    rows = np.sum([np.diff(one) for one in offsets], axis=0)  # of each utterance
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
    """FLOP/s that products of large matrices reach on the GPU of a run, by precision: float32, and its own."""
    found: dict[str, float] = {}
    for precision in dict.fromkeys(["float32", plan.precision]) if plan.device.startswith("cuda") else ():
        from torch.utils.benchmark import Timer  # which warms up, and waits for the GPU

        exact_arithmetic(plan.device, plan.deterministic)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        x = torch.randn(PRODUCT, PRODUCT, dtype=dtype, device=plan.device)
        found[precision] = 2 * PRODUCT**3 / Timer("x @ x", globals={"x": x}).timeit(20).mean
    return found
