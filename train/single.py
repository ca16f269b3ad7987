"""One run: train, test, write the folder."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data import Dataset
from .evaluate import predict
from .fit import Diverged, Epoch, Fitted, fit
from .folds import Fold, is_speaker_independent
from .metrics import scores
from .plan import Plan
from .runs import CONFIG, LOG, RESULT, STATE, Run, claimed, run_name, write_json, write_predictions
from .state import State, snapshot
from .tensorboard import curves
from .weights import read_state, write_model, write_state

log = logging.getLogger("ser.train")

STATE_SECONDS = 30.0  # between two states of an unfinished run: what a kill costs at most


def train_run(
    data: Dataset,
    fold: Fold,
    plan: Plan,
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
        with (
            (run.path / LOG).open("a" if state else "w", encoding="utf-8") as lines,
            curves(plan.log, run.path) as draw,
            one_thread(),
        ):
            started = time.monotonic()

            def note(epoch: Epoch) -> None:
                lines.write(f"{_line(epoch)}\n")
                lines.flush()
                draw(epoch)
                if on_epoch:
                    on_epoch(epoch)

            try:
                with torch.random.fork_rng(devices=[]):
                    fitted = fit(data, fold, plan, note, _StateKeeper(run), state)
            except Diverged as fault:
                write_model(run, fault.kept, fault.scaling)
                lines.write(f"{fault}\n")
                raise type(fault)(f"{run.path}: {fault}", fault.kept, fault.scaling) from None
            except KeyboardInterrupt:
                lines.write("interrupted; --resume goes on from the last state\n")
                raise
            _finish(run, data, fold, plan, config, fitted, time.monotonic() - started)
        return run


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
    plan: Plan,
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


def predict_tests(fitted: Fitted, data: Dataset, rows: np.ndarray, plan: Plan) -> dict[str, np.ndarray]:
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
