"""Training on a GPU against the same on the CPU: the same numbers, and how long the papers' tables take.

    python -m benchmarks.gpu [DEVICE] [small]        cuda by default; small: a trial of this page itself, on any device

One call of some minutes. Values are random at IEMOCAP's true sizes, since they do not change the work. The table's
times are those of some epochs, scaled to the whole, which the row names. Exit code 1 if the numbers differ or a target
is missed.
"""

import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from ser import engines
from ser.benchmarks.costs import made_up
from ser.benchmarks.train import durations
from ser.train.data.dataset import Dataset
from ser.train.data.splits import Fold
from ser.train.fit import Diverged, Fitted, fit, predict
from ser.train.fit_many import can_train_together, fit_many
from ser.train.run import one_thread, train_runs
from ser.train.run_folder import Run
from ser.train.settings import TrainConfig

TOLERANCE = {"float32": 2e-3, "bf16": 5e-2}  # of probabilities, after two epochs without dropout
SEEDS, EPOCHS, FOLDS = 20, 150, 5
UTTERANCES = 4290  # labelled, in four of the five sessions
FUSIONS = ("ef-concat", "mf-at", "lf-add", "lgf-add")  # of the twelve, each position and each method
PERSPECTIVE = "perspective-table2: 12 fusions × 2 losses × 20 seeds × 150 epochs (from 3 epochs of 4 fusions)"
MSMSER = "MSMSER Full: 5 folds × 100 epochs at batch 8, the folds side by side (from 3 epochs of each)"
TARGETS = {PERSPECTIVE: 180.0, MSMSER: 600.0}  # seconds


def vectors(n: int, *settings: str, fusion: str = "lgf-add") -> tuple[Dataset, Fold, TrainConfig]:
    """What the Perspective family trains on: three sessions of IS13 and sentence vectors, the fourth as dev part."""
    sizes = {"audio": (6373, np.ones(n, int)), "text": (768, np.ones(n, int))}
    data, _, plan = made_up(fusion, sizes, *settings)
    turns = np.random.default_rng(0).integers(12, 62, size=n)  # 37 labelled ones on average
    ends = turns.cumsum()
    dialogues = np.searchsorted(ends, np.arange(n), side="right")
    data = replace(data, utterances=replace(data.utterances, dialogues=dialogues))
    cut = int(ends[np.searchsorted(ends, 3 * n // 4)])
    train, dev = np.split(np.arange(n), [min(cut, n - 1)])
    data = replace(data, notes={"synthetic": True, "random_weights": [], "left_out": {}})
    return data, Fold("1", train, dev, dev), plan  # a test part of a session's size, to be predicted at the end


def sequences(n: int, *settings: str) -> tuple[Dataset, Fold, TrainConfig]:
    """What MSMSER trains on: HuBERT frames and MPNet tokens of utterances as long as IEMOCAP's, in float16."""
    seconds = durations(n, np.random.default_rng(0))
    audio, text = np.ceil(seconds * 50 - 1).astype(int), np.ceil(seconds * 3.2 + 2).astype(int)
    data, fold, plan = made_up("mit", {"audio": (768, audio), "text": (768, text)}, *settings)
    halved = {modality: replace(stored, values=stored.values.half()) for modality, stored in data.inputs.items()}
    return replace(data, read=lambda: halved), fold, plan


def parity(fusion: str, device: str, precision: str, *settings: str) -> list[Any]:
    """A row: the largest difference of any probability, of models trained alike on the CPU and on the device."""
    wanted = ("epochs=2", "dropout=0", *settings)
    data, fold, plan = sequences(120, *wanted) if fusion == "mit" else vectors(480, *wanted, fusion=fusion)
    plan = replace(plan, select="last")
    found = []
    for here in (plan, replace(plan, device=device, precision=precision)):
        models = trained(data, fold, here) if here is not plan else [fit(data, fold, here)]
        found.append(predict(models[0].model, data, fold.train, here, models[0].scaling)["logits"])
    difference = float(np.abs(found[0] - found[1]).max())
    return [f"{fusion}, {precision}", difference, TOLERANCE[precision], difference <= TOLERANCE[precision]]


def trained(data: Dataset, fold: Fold, plan: TrainConfig) -> list[Fitted]:
    """Two seeds at once, where the fusion allows that, or one."""
    if not can_train_together(data, plan):
        return [fit(data, fold, plan)]
    found = fit_many(data, fold, [plan, replace(plan, seed=1)])
    return [each for each in found if not isinstance(each, Diverged)]


def perspective(device: str, precision: str, small: bool, *settings: str) -> list[Any]:
    """A row: seconds of the 480 runs, 40 at once (both losses), from three epochs of 4 of the 12 fusions.

    All is counted: beside the epochs, of which the fastest counts, what a run costs before and after them.
    """
    seeds, fusions = (1, FUSIONS[-1:]) if small else (SEEDS, FUSIONS)
    seconds = 0.0
    for fusion in fusions:
        data, fold, plan = vectors(200 if small else UTTERANCES, "epochs=3", *settings, fusion=fusion)
        plan = replace(plan, device=device, precision=precision, select="val")
        plans = [replace(plan, loss=loss, seed=seed) for seed in range(seeds) for loss in ("single", "perspective")]
        with tempfile.TemporaryDirectory(prefix="ser-bench-") as out:
            started = time.perf_counter()
            runs = train_runs(data, fold, plans, [described(each) for each in plans], Path(out))
            took = time.perf_counter() - started
            epochs = [line["seconds"] for run in runs if isinstance(run, Run) for line in run.result["history"][:3]]
        fastest = min(sum(epochs[number::3]) for number in range(3))  # of the three, all runs together
        seconds += took - sum(epochs) + EPOCHS * fastest
    seconds *= 12 / len(fusions)
    return [f"{PERSPECTIVE}, {precision}", seconds, TARGETS[PERSPECTIVE], seconds <= TARGETS[PERSPECTIVE]]


def described(plan: TrainConfig) -> dict[str, Any]:
    """As much of a run's config as its folder needs."""
    return {
        "corpus": "made-up",
        "fusion": plan.fusion.name,
        "loss": plan.loss,
        "protocol": "none",
        "select": plan.select,
        "fold": "1",
        "seed": plan.seed,
        "labels": {"policy": "4class"},
        "features": {},
    }


@dataclass(frozen=True)
class Part:
    """A fold to time in a process of its own."""

    device: str
    precision: str
    utterances: int
    settings: tuple[str, ...]


def fold_seconds(part: Part) -> float:
    """Seconds of an epoch of MSMSER Full: the slower of the last two of three, while the other folds train too."""
    data, fold, plan = sequences(part.utterances, "epochs=3", *part.settings)
    with one_thread():
        fitted = fit(data, fold, replace(plan, device=part.device, precision=part.precision))
    return max(line["seconds"] for line in fitted.history[1:])


def msmser(device: str, precision: str, small: bool, *settings: str) -> list[Any]:
    """A row: seconds of five folds side by side on the one device, as `ser sweep --workers 5` trains them."""
    part = Part(device, precision, 24 if small else 3319, settings)
    slowest = max(engines.run(fold_seconds, [part] * (2 if small else FOLDS), workers=2 if small else FOLDS))
    return [f"{MSMSER}, {precision}", slowest * 100, TARGETS[MSMSER], slowest * 100 <= TARGETS[MSMSER]]


def main(device: str = "cuda", small: str = "") -> int:
    """Print both tables and return the exit code."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        print(f"no GPU here: not measured on {device}")
        return 1
    tiny = ("d_model=16", "heads=2") if small else ()
    precisions: tuple[str, ...] = ("float32", "bf16")
    checks = [parity(fusion, device, precision, *tiny) for fusion in ("lgf-add", "mit") for precision in precisions]
    print(tabulate(checks, ["CPU against " + device, "difference", "tolerance", "holds"], floatfmt=".2g"), flush=True)
    times = [work(device, precision, bool(small), *tiny) for work in (perspective, msmser) for precision in precisions]
    if small:  # such times say nothing of the whole
        print(f"small sizes: {len(times)} timings ran, and mean nothing")
        times = []
    else:
        print(tabulate(times, [device, "seconds", "target", "holds"], floatfmt=".4g"))
    return 0 if all(row[-1] for row in [*checks, *times]) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
