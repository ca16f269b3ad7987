"""Jobs: one run, or many of one fold at once, trained, tested and written; and a trained model
opened again.
"""

import contextlib
import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs
from safetensors.torch import save

from ser.engines import is_out_of_memory
from ser.errors import CorruptStore, Diverged, SerError, WrongUse
from ser.plugins import not_installed

from .config import TrainConfig
from .data.dataset import Dataset
from .data.folds import Fold
from .data.leakage import known_before
from .data.protocols import UNDECIDED
from .data.standardizer import Standardizer
from .finetune import reopened
from .fit import NO_NUMBERS, Fitted, fit, snapshot
from .fit_many import can_train_together, fit_many, runs_at_once
from .models import FUSIONS, with_layer_sums
from .models.superb import layer_shares
from .records import (
    Calibration,
    Epoch,
    RaterScores,
    RunConfig,
    RunResult,
    SplitCorpus,
    UndecidedScores,
)
from .run_folder import (
    CONFIG,
    DEV,
    FAULT,
    LOG,
    MODEL,
    RESULT,
    STATE,
    Files,
    Run,
    claimed,
    run_name,
)
from .scores.raters import divergences
from .seal import AGAIN
from .settings import TrainingSettings, settings_from_record
from .targets import TARGETS

STATE_SECONDS = 30.0  # between two states of an unfinished run: what a kill costs at most


@dataclass(frozen=True)
class Job:
    """One run to come."""

    data: Dataset
    fold: Fold
    plan: TrainConfig
    config: RunConfig  # complete, with provenance

    @cached_property
    def name(self) -> str:
        """The name of its run folder."""
        return run_name(self.config)

    @property
    def stacked(self) -> bool:
        """Whether it is fitted by `fit_many`: on a GPU, even alone, so that its numbers do not
        depend on the others.
        """
        return torch.device(self.plan.device).type == "cuda" and can_train_together(
            self.data, self.plan
        )

    @cached_property
    def group(self) -> str:
        """The same for jobs that are fitted together: those that are `stacked`, and differ in seed
        and loss alone.
        """
        apart = ("seed", "loss") if self.stacked else ()
        return run_name(self.config, apart)


OnProgress = Callable[
    [Job, Epoch | None], None
]  # after each epoch of a job; None when its run is finished


def train_jobs(
    jobs: Sequence[Job], out: Path, resume: bool = False, on_epoch: OnProgress | None = None
) -> list[Run | Diverged]:
    """Train the jobs of one group, each into `<out>/<its name>`; a finished run is returned as it
    is.

    Several, and one that is `stacked`, are trained at once (`fit_many`): if memory runs out, half
    as many, down to one; if their inputs do not fit on the GPU, one after the other. They keep no
    states. Any other job does, and continues from its last with `resume`; without states it starts
    anew. For a job that diverged the list holds the fault, and its folder the weights of the last
    good epoch. Raises `SerError`, with the remedy, if memory runs out.
    """
    first, together = jobs[0], len(jobs) > 1 or jobs[0].stacked
    with contextlib.ExitStack() as stack:
        stack.enter_context(oom_as_error(first.plan))
        in_order = sorted(
            jobs, key=lambda job: job.name
        )  # in all processes, so none waits for ever
        runs = {job.name: stack.enter_context(claimed(out / job.name)) for job in in_order}
        ended: dict[str, Run | Diverged] = {
            name: run.checked() for name, run in runs.items() if run.finished
        }
        waiting = []
        for job in [job for job in jobs if job.name not in ended]:
            if together or not resume:
                (runs[job.name].path / STATE).unlink(missing_ok=True)
            waiting.append(Training(job, runs[job.name], stack, not together, on_epoch))
        stack.enter_context(one_thread())
        if together:
            first.data.on(
                first.plan.device
            )  # first, so that what it takes there does not count as free
        most = runs_at_once(first.data, first.fold, first.plan) if together else 1
        while waiting:
            batch = waiting[:most]
            started = time.monotonic()
            models = list[Fitted]()  # so those of the last batch are gone
            torch.cuda.empty_cache()
            try:
                if together:
                    models = fit_many(
                        first.data, first.fold, [training.job.plan for training in batch], batch
                    )
                if not models:
                    together, most, batch = False, 1, waiting[:1]
                    [training] = batch
                    state = (
                        training.run.tensors(STATE)
                        if (training.run.path / STATE).exists()
                        else None
                    )
                    models = [fit(first.data, first.fold, training.job.plan, training, state)]
            except (MemoryError, RuntimeError) as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                for training in batch:
                    training(
                        f"memory ran out with {len(batch)} runs at once; started anew with half as many"
                    )
                most = len(batch) // 2
                traceback.clear_frames(error.__traceback__)  # they hold the models,
                gc.collect()  # in which a module and its hooks know each other
                continue
            seconds = (time.monotonic() - started) / len(batch)
            for training, model in zip(batch, models, strict=True):
                run = training.run
                if model.fault:
                    write_model(run, snapshot(model.model.state_dict()), model.scaling)
                fault = model.fault or _finish(run, training.job, model, seconds)
                if fault:
                    training(fault)
                    run.write_json(FAULT, {"fault": fault})
                ended[run.name] = Diverged(f"{run.path}: {fault}") if fault else run
            waiting = waiting[most:]
        return [ended[job.name] for job in jobs]


class Training:
    """A job being trained in its run's folder. Called with an epoch, or with a line, it is the
    run's log.

    An epoch goes to TensorBoard too, if the plan says so, and to `on_epoch`; every `STATE_SECONDS`
    the state after it is written, if `states` are kept. What is opened is closed with the stack.
    """

    def __init__(
        self,
        job: Job,
        run: Run,
        stack: contextlib.ExitStack,
        states: bool,
        on_epoch: OnProgress | None,
    ) -> None:
        self.job, self.run, self.states, self.on_epoch, self.written = (
            job,
            run,
            states,
            on_epoch,
            time.monotonic(),
        )
        (run.path / FAULT).unlink(missing_ok=True)
        run.write_json(CONFIG, job.config)
        if not (run.path / STATE).exists():
            (run.path / LOG).unlink(missing_ok=True)  # not cut: a backup may be a hard link to it
        self.lines = stack.enter_context((run.path / LOG).open("a", encoding="utf-8"))
        self.curves: Any = None
        if job.plan.log == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.curves = stack.enter_context(SummaryWriter(str(run.path / "tensorboard")))

    def __call__(self, event: Epoch | str, state: Callable[[], bytes] | None = None) -> None:
        if isinstance(event, str):
            self.lines.write(f"{event}\n")
            self.lines.flush()
            return
        values = {name: value for name, value in structs.asdict(event).items() if value is not None}
        self(
            " · ".join(
                f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
            )
        )
        if self.curves is not None:
            for name in values.keys() & {"loss", "wa", "ua", "macro_f1", "ccc"}:
                self.curves.add_scalar(f"{event.stage}/{name}", values[name], event.epoch)
            self.curves.flush()
        if self.on_epoch:
            self.on_epoch(self.job, event)
        if self.states and state and time.monotonic() - self.written >= STATE_SECONDS:
            self.run.write_tensors(STATE, state())
            self.written = time.monotonic()


@contextlib.contextmanager
def oom_as_error(plan: TrainConfig) -> Iterator[None]:
    """Raise `SerError`, with the remedy, if an allocation fails, and `WrongUse` for what cannot be
    deterministic.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if "deterministic implementation" in str(fault):
            what = (
                f"{plan.fusion.name} has an operation without a deterministic form on {plan.device}"
            )
            raise WrongUse(f"--deterministic: {what}; leave it out") from fault
        if not is_out_of_memory(fault):
            raise
        size = f"--set batch_size={max(1, plan.settings.batch_size // 2)}"
        raise SerError(
            f"the memory of {plan.device} ran out while training {plan.fusion.name} in batches of "
            f"{plan.settings.batch_size}; what was finished is kept: run again while less else is running there (a "
            f"sweep: fewer --workers), or with --precision bf16 or {size}, which change the numbers"
        ) from fault


def _finish(run: Run, job: Job, fitted: Fitted, seconds: float) -> str | None:
    """Test the model and write the run's files; `result.json` comes last. Predictions that are NaN
    are a fault.
    """
    data, fold, plan, config = job.data, job.fold, job.plan, job.config
    utterances, rows, target = data.utterances, fold.test, TARGETS[plan.target]
    # By each way to test one trained model: "both", as it is, whatever its inputs; "only audio" and
    # "only text", the other modality hidden, where the fusion can hide one (MSMSER §4.3); "head
    # audio" and "head text", its unimodal heads (Perspective Table 3).
    heads = fitted.predict(data, rows, plan)
    tests = {"both": heads.pop("logits")}
    if plan.fusion.hide is not None:
        for shown, hidden in (("audio", "text"), ("text", "audio")):
            tests[f"only {shown}"] = fitted.predict(data, rows, plan, hide=hidden)["logits"]
    tests |= {f"head {head}": predicted for head, predicted in heads.items()}
    # How sure a model is of its own training utterances says nothing.
    dev = fold.dev[:0] if plan.training.refit else fold.dev
    on_dev = (
        {"both": fitted.predict(data, dev, plan, heads=frozenset({"logits"}))["logits"]}
        if len(dev)
        else {}
    )
    undecided = fold.left_out.get(f"{UNDECIDED} (test)", rows[:0])
    no_majority: UndecidedScores | None = None
    if len(undecided):
        predicted = fitted.predict(data, undecided, plan)["logits"]
        distances = divergences(utterances.votes[undecided], predicted)
        no_majority = UndecidedScores(
            n=len(undecided),
            kl=float(distances["kl"].mean()),
            js=float(distances["js"].mean()),
        )
    if not all(np.isfinite(predicted).all() for predicted in (*tests.values(), *on_dev.values())):
        return NO_NUMBERS

    tested = {
        name: target.scored(utterances, rows, predicted, plan) for name, predicted in tests.items()
    }
    weights, features = snapshot(fitted.model.state_dict()), config.features
    files = run.write_json(CONFIG, config) | write_model(run, weights, fitted.scaling)
    files |= run.write_predictions(target.columns(utterances, rows, tests, plan))
    if on_dev:
        files |= run.write_predictions(target.columns(utterances, dev, on_dev, plan), DEV)
    raters = data.raters(rows)
    calibration = None
    if on_dev:
        calibration = target.calibrated(utterances, (dev, on_dev["both"]), (rows, tests["both"]))
    left_out = dict(data.notes["left_out"])
    for why, others in fold.left_out.items():
        left_out[why] = len(others)
    several = data.notes.get("corpora")
    corpora = None
    if several:
        names = np.array(utterances.corpora)
        corpora = {}
        for name, about in several.items():
            sizes = {part: int(np.sum(names[own] == name)) for part, own in fold.parts.items()}
            corpora[name] = SplitCorpus(
                synthetic=about.synthetic,
                classes=about.classes,
                train=sizes["train"],
                dev=sizes["dev"],
                test=sizes["test"],
            )
    summed = any(feature.sums is not None for feature in features.values())
    result = RunResult(
        **structs.asdict(tested["both"]),
        corpus=config.corpus,
        fusion=config.fusion,
        loss=config.loss,
        protocol=config.protocol,
        select=config.select,
        fold=config.fold,
        seed=config.seed,
        labels=config.labels.policy,
        classes=list(utterances.classes),
        tests=tested,
        raters=None if raters is None else RaterScores(**raters),
        no_majority=no_majority,
        calibration=None if calibration is None else Calibration(**calibration),
        **known_before(fold.refitted if plan.training.refit else fold, utterances),
        synthetic=data.notes["synthetic"],
        random_weights=data.notes["random_weights"],
        parts={part: len(own) for part, own in fold.parts.items()},
        dev=fold.dev_by,
        refit=plan.training.refit,
        left_out=left_out,
        epoch=fitted.epoch,
        seconds=round(seconds, 3),
        history=fitted.history,
        layers=layer_shares(weights, features) if summed else None,
        files=files,
        corpora=corpora,
        standardise_by=plan.training.standardise_by if several else None,
    )
    run.write_json(RESULT, result)
    (run.path / STATE).unlink(missing_ok=True)
    return None


def write_model(
    run: Run, weights: Mapping[str, torch.Tensor], scaling: Mapping[str, Standardizer]
) -> Files:
    """Write `model.safetensors`. Returns its entry in the result's `files`."""
    tensors = {f"model.{name}": value.contiguous() for name, value in weights.items()}
    for modality, scale in scaling.items():
        tensors |= {f"scaling.{modality}.mean": scale.mean, f"scaling.{modality}.std": scale.std}
    return run.write_tensors(MODEL, save(tensors))


def load_model(run: Run, device: str = "cpu") -> tuple[Fitted, TrainConfig]:
    """The trained model of a run with its scaling, on a device, and a config to predict with there.

    Loss, selection, seed and precision of that config are the defaults, not the run's. Raises
    `WrongUse` if the run has no model or its fusion is unknown here, `CorruptStore` for weights
    that are NaN.
    """
    if not (run.path / MODEL).exists():
        raise WrongUse(
            f"{run.path}: holds no trained model yet; finish the run with `ser train --resume {run.path}`"
        )
    config, dims, target = run.config, run.config.dims, run.config.target
    if target not in TARGETS:
        raise WrongUse(
            f"{run.path}: was trained with target '{target}', which this ser does not know"
        )
    if config.fusion not in FUSIONS:
        what = f"was trained with the fusion '{config.fusion}'"
        raise WrongUse(f"{run.path}: {not_installed(what, config.provenance.package)}")
    fusion = with_layer_sums(FUSIONS[config.fusion], config.layer_sums)
    settings = settings_from_record(fusion.settings, config.settings, str(run.path / CONFIG))
    training = settings_from_record(TrainingSettings, config.training, str(run.path / CONFIG))
    tensors, _ = run.tensors(MODEL)
    weights = {
        name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")
    }
    scaling: dict[str, Standardizer] = {}
    try:
        tuned, classes = reopened(fusion, settings, config), len(config.labels.classes)
        model = TARGETS[target].build(tuned, settings, dims, classes)
        model.load_state_dict(weights)
        for modality in sorted(
            {name.split(".")[1] for name in tensors if name.startswith("scaling.")}
        ):
            moments = [tensors[f"scaling.{modality}.{moment}"] for moment in ("mean", "std")]
            scaling[modality] = Standardizer(
                *(x.view(-1, dims[modality]).squeeze(0) for x in moments)
            )
    except SerError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, MemoryError):
        weights = {}
    if not weights or not all(tensor.isfinite().all() for tensor in tensors.values()):
        fault = f"does not hold the weights of fusion '{fusion.name}', or they are NaN"
        raise CorruptStore(f"{run.path / MODEL}: {fault}; {AGAIN}")
    plan = TrainConfig(fusion, settings, training, target=target, device=device)
    return Fitted(model.eval().to(device), scaling), plan


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: the same numbers on any load, and one process per core is faster than
    threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
