"""One run, or many runs of one fold at once: train, test, write the folders."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ser.engines import is_out_of_memory
from ser.errors import CorruptStore, WrongUse, unknown

from .data import Dataset, Standardizer
from .finetune import reopened
from .fit import Diverged, Epoch, Fitted, State, fit, predict, snapshot
from .fit_many import fit_many, runs_at_once
from .models import FUSIONS, Fusion
from .run_folder import CONFIG, LOG, MODEL, RESULT, STATE, Run, claimed, run_name, write, write_json, write_predictions
from .scores import scores
from .settings import TrainConfig
from .splits import Fold, is_speaker_independent

FOLDER = "tensorboard"  # in the run folder


def check_log(log: str | None) -> None:
    """Raise `WrongUse` if runs cannot be logged that way here."""
    if log is None:
        return
    if log != "tensorboard":
        raise unknown("log", log, ["tensorboard"])
    if find_spec("tensorboard") is None:
        raise WrongUse(
            "--log tensorboard: TensorBoard is not installed; `pip install 'ser[tensorboard]'` adds it, and without "
            "--log every run still writes its epochs to its file `log`"
        )


@contextlib.contextmanager
def curves(log: str | None, run: Path) -> Iterator[Callable[[Epoch], None]]:
    """What notes the epochs of a run: loss, and WA and UA of the part that is watched, by stage."""
    if log is None:
        yield lambda epoch: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / FOLDER)) as writer:

        def note(epoch: Epoch) -> None:
            for name in ("loss", "wa", "ua"):
                value = getattr(epoch, name)
                if value is not None:
                    writer.add_scalar(f"{epoch.stage}/{name}", value, epoch.epoch)
            writer.flush()

        yield note


def write_model(run: Run, weights: Mapping[str, Tensor], scaling: Mapping[str, Standardizer]) -> None:
    """Write `model.safetensors`."""
    tensors = {f"model.{name}": value.contiguous() for name, value in weights.items()}
    for modality, scale in scaling.items():
        tensors |= {f"scaling.{modality}.mean": scale.mean, f"scaling.{modality}.std": scale.std}
    write(run, MODEL, save(tensors))


def write_state(run: Run, state: State) -> None:
    """Write `state.safetensors`, from which `read_state` goes on."""
    about = {"stage": state.stage, "epoch": state.epoch, "best_score": repr(state.best_score), "history": state.history}
    write(run, STATE, save({n: t.contiguous() for n, t in state.tensors.items()}, {"state": json.dumps(about)}))


def read_state(run: Run) -> State | None:
    """Where an unfinished run stands, if it got that far."""
    if not (run.path / STATE).exists():
        return None
    tensors, metadata = _read(run, STATE)
    about = json.loads(metadata["state"])
    return State(about["stage"], about["epoch"], float(about["best_score"]), about["history"], tensors)


def load_model(run: Run) -> tuple[Fitted, Fusion, Any]:
    """The trained model of a run with its scaling, the fusion and the fusion's settings.

    Raises `WrongUse` if the run has no model or its fusion is unknown here.
    """
    if not (run.path / MODEL).exists():
        raise WrongUse(f"{run.path}: holds no trained model yet; finish the run with `ser train --resume {run.path}`")
    config = run.config
    if config["fusion"] not in FUSIONS:
        raise WrongUse(f"{run.path}: was trained with fusion '{config['fusion']}', which this ser does not know")
    fusion = FUSIONS[config["fusion"]]
    settings = fusion.settings(**config["settings"])
    model = reopened(fusion, settings, config).build(settings, config["dims"], len(config["labels"]["classes"]))
    tensors, _ = _read(run, MODEL)
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    if snapshot(model).keys() != weights.keys():
        raise CorruptStore(f"{run.path / MODEL}: does not hold the weights of fusion '{fusion.name}'")
    model.load_state_dict(weights)
    modalities = {n.split(".")[1] for n in tensors if n.startswith("scaling.")}
    scaling = {m: Standardizer(tensors[f"scaling.{m}.mean"], tensors[f"scaling.{m}.std"]) for m in sorted(modalities)}
    return Fitted(model.eval(), scaling), fusion, settings


def _read(run: Run, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(run.path / name, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CorruptStore(f"{run.path / name}: cannot be read ({error}); remove the run folder") from None


STATE_SECONDS = 30.0  # between two states of an unfinished run: what a kill costs at most


def train_run(
    data: Dataset,
    fold: Fold,
    plan: TrainConfig,
    config: Mapping[str, Any],
    out: Path,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Run:
    """Train one fold with one seed into `<out>/<hash of config>`; a finished run is returned as it is.

    An unfinished one starts anew, or goes on from its last state with `resume`. Raises `Diverged` when the loss is no
    longer a number; the folder then holds the weights of the last good epoch.
    """
    with claimed(out / run_name(config)) as run:
        if run.finished:
            return run
        state = read_state(run) if resume else None
        write_json(run, CONFIG, config)
        with _log(run, plan, on_epoch, goes_on=bool(state)) as log, one_thread():
            started = time.monotonic()
            try:
                with torch.random.fork_rng(devices=[]):
                    fitted = fit(data, fold, plan, log.note, _StateKeeper(run), state)
            except Diverged as fault:
                raise _diverged(run, fault, log) from None
            except KeyboardInterrupt:
                log.write(f"interrupted; `ser train --resume {run.path}` goes on from the last state")
                raise
            _finish(run, data.on(plan.device), fold, plan, config, fitted, time.monotonic() - started)
        return run


def train_runs(
    data: Dataset,
    fold: Fold,
    plans: Sequence[TrainConfig],
    configs: Sequence[Mapping[str, Any]],
    out: Path,
    on_epoch: Callable[[int, Epoch], None] | None = None,
) -> list[Run | Diverged]:
    """As `train_run`, for plans that differ in seed and loss alone and are trained at once; see `fit_many`.

    They keep no states: one that is killed or interrupted starts anew. One that diverged gives the fault in the place
    of its run. Where memory ends, half as many are trained at once, down to one.
    """
    names = [run_name(config) for config in configs]
    found: dict[int, Run | Diverged] = {}
    with contextlib.ExitStack() as stack:
        in_order = sorted(range(len(names)), key=names.__getitem__)  # everybody's, so that nobody waits for ever
        runs = {i: stack.enter_context(claimed(out / names[i])) for i in in_order}
        found |= {i: run for i, run in runs.items() if run.finished}
        left = [i for i in range(len(names)) if i not in found]
        logs = {}
        for i in left:
            (runs[i].path / STATE).unlink(missing_ok=True)
            write_json(runs[i], CONFIG, configs[i])
            tell = functools.partial(on_epoch, i) if on_epoch else None
            logs[i] = stack.enter_context(_log(runs[i], plans[i], tell))
        stack.enter_context(one_thread())
        placed = data.on(plans[0].device)
        most = min(len(left), runs_at_once(data, fold, plans[0]))
        while left:
            now = left[:most]
            started = time.monotonic()
            fitted = _fit_or_halve(data, fold, [plans[i] for i in now], [logs[i] for i in now])
            if fitted is None:
                most = len(now) // 2
                continue
            seconds = (time.monotonic() - started) / len(now)
            for i, one in zip(now, fitted, strict=True):
                if isinstance(one, Diverged):
                    found[i] = _diverged(runs[i], one, logs[i])
                else:
                    _finish(runs[i], placed, fold, plans[i], configs[i], one, seconds)
                    found[i] = runs[i]
            left = left[most:]
    return [found[i] for i in range(len(names))]


def _fit_or_halve(
    data: Dataset, fold: Fold, plans: Sequence[TrainConfig], logs: Sequence["_Log"]
) -> list[Fitted | Diverged] | None:
    """What `fit_many` gives; None where memory ended with more than one, and when nothing holds any of it."""
    try:
        return fit_many(data, fold, plans, [log.note for log in logs])
    except (MemoryError, RuntimeError) as fault:
        if len(plans) == 1 or not is_out_of_memory(fault):
            raise
    except KeyboardInterrupt:
        for log in logs:
            log.write("interrupted; the same command starts this run anew")
        raise
    for log in logs:
        log.write(f"memory ended with {len(plans)} runs at once; begun anew with half as many")
    torch.cuda.empty_cache()
    return None


@dataclass(frozen=True)
class _Log:
    """A run's log, its curves, and whoever wants to hear of its epochs."""

    lines: TextIO
    draw: Callable[[Epoch], None]
    tell: Callable[[Epoch], None] | None

    def write(self, line: str) -> None:
        self.lines.write(f"{line}\n")
        self.lines.flush()

    def note(self, epoch: Epoch) -> None:
        self.write(_line(epoch))
        self.draw(epoch)
        if self.tell:
            self.tell(epoch)


@contextlib.contextmanager
def _log(run: Run, plan: TrainConfig, tell: Callable[[Epoch], None] | None, goes_on: bool = False) -> Iterator[_Log]:
    with (run.path / LOG).open("a" if goes_on else "w", encoding="utf-8") as lines, curves(plan.log, run.path) as draw:
        yield _Log(lines, draw, tell)


def _diverged(run: Run, fault: Diverged, log: _Log) -> Diverged:
    """The fault with the run's name; what was good stays in its folder."""
    write_model(run, fault.kept, fault.standardizers)
    log.write(str(fault))
    return Diverged(f"{run.path}: {fault}", fault.kept, fault.standardizers)


class _StateKeeper:
    """Writes the state of a run now and then."""

    def __init__(self, run: Run) -> None:
        self.run, self.last = run, time.monotonic()

    def __call__(self, take: Callable[[], State]) -> None:
        if time.monotonic() - self.last >= STATE_SECONDS:
            write_state(self.run, take())
            self.last = time.monotonic()


def _finish(
    run: Run,
    data: Dataset,
    fold: Fold,
    plan: TrainConfig,
    config: Mapping[str, Any],
    fitted: Fitted,
    seconds: float,
) -> None:
    """Test the model and write what the run leaves; `result.json` comes last."""
    utterances = data.utterances
    truth = utterances.labels[fold.test]
    tests = predict_tests(fitted, data, fold.test, plan)
    columns: dict[str, Any] = {
        "id": [utterances.ids[row] for row in fold.test],
        "speaker": [utterances.speakers[row] for row in fold.test],
        "truth": [utterances.classes[k] for k in truth],
        "predicted": [utterances.classes[k] for k in tests["both"].argmax(1)],
    }
    for name, probabilities in tests.items():
        columns["probabilities" if name == "both" else f"probabilities {name}"] = list(probabilities)
    found = {
        name: scores(truth.tolist(), probabilities.argmax(1).tolist(), utterances.classes)
        for name, probabilities in tests.items()
    }
    write_model(run, snapshot(fitted.model), fitted.scaling)
    write_predictions(run, columns)
    described = {key: config[key] for key in ("corpus", "fusion", "loss", "protocol", "select", "fold", "seed")}
    write_json(
        run,
        RESULT,
        {
            **found["both"],
            **described,
            "labels": config["labels"]["policy"],
            "classes": list(utterances.classes),
            "tests": found,
            "speaker_independent": is_speaker_independent(fold, utterances),
            "synthetic": data.notes["synthetic"],
            "random_weights": data.notes["random_weights"],
            "parts": {part: len(rows) for part, rows in fold.parts.items()},
            "left_out": {**data.notes["left_out"], **{why: len(rows) for why, rows in fold.left_out.items()}},
            "epoch": fitted.epoch,
            "seconds": round(seconds, 3),
            "history": fitted.history,
        },
    )
    (run.path / STATE).unlink(missing_ok=True)


def predict_tests(fitted: Fitted, data: Dataset, rows: np.ndarray, plan: TrainConfig) -> dict[str, np.ndarray]:
    """Probabilities [n, K] of each way to test one trained model.

    "both": the model as it is (whatever its inputs); "only audio", "only text": the other modality hidden, where the
    fusion can hide one (MSMSER §4.3); "head audio", "head text": its unimodal heads (Perspective Table 3).
    """
    heads = predict(fitted.model, data, rows, plan, fitted.scaling)
    tests = {"both": heads.pop("logits")}
    if plan.fusion.masking is not None:
        for shown, hidden in (("audio", "text"), ("text", "audio")):
            tests[f"only {shown}"] = predict(fitted.model, data, rows, plan, fitted.scaling, hide=hidden)["logits"]
    return tests | {f"head {head}": probabilities for head, probabilities in heads.items()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: the same numbers on any load, and one process per core is faster than threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _line(epoch: Epoch) -> str:
    return " · ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in asdict(epoch).items()
        if value is not None
    )
