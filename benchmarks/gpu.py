"""Training on a GPU against the same on the CPU: the same numbers, and how long the papers' tables take.

    python -m benchmarks.gpu [DEVICE] [small]        cuda by default; small: a trial of this page itself, on any device

One call of some minutes. Values are random at IEMOCAP's true sizes, since they do not change the work. The table's
times are those of some epochs, scaled to the whole; each run is trained after the other. Exit code 1 if the numbers
differ or a target is missed.
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tabulate import tabulate

from ser.train.evaluate import predict
from ser.train.fit import fit
from ser.train.plan import Precision

from .costs import made_up
from .train import durations

TOLERANCE = {"float32": 2e-3, "bf16": 5e-2}  # of probabilities, after two epochs without dropout


@dataclass(frozen=True)
class Work:
    """What a paper's table takes: so many epochs on so many utterances of training."""

    what: str
    fusion: str
    utterances: int
    epochs: int  # of all runs together
    target: float  # seconds


TABLES = (
    Work("perspective-table2, 480 runs × 150 epochs, lgf-add", "lgf-add", 4290, 480 * 150, 180.0),
    Work("MSMSER Full, 5 folds × 100 epochs", "mit", 3319, 5 * 100, 600.0),
)


def lengths(fusion: str, n: int) -> dict[str, tuple[int, np.ndarray]]:
    """Dimension and rows per utterance of each modality, as `made_up` takes them."""
    if fusion == "lgf-add":
        return {"audio": (6373, np.ones(n, int)), "text": (768, np.ones(n, int))}
    seconds = durations(n, np.random.default_rng(0))
    return {
        "audio": (768, np.ceil(seconds * 50 - 1).astype(int)),
        "text": (768, np.ceil(seconds * 3.2 + 2).astype(int)),
    }


def parity(fusion: str, device: str, precision: Precision, *settings: str) -> list[Any]:
    """A row: the largest difference of any probability, of models trained alike on the CPU and on the device."""
    data, fold, plan = made_up(fusion, lengths(fusion, 120), "epochs=2", "dropout=0", *settings)
    found = []
    for here in (replace(plan, device="cpu"), replace(plan, device=device, precision=precision)):
        fitted = fit(data, fold, here)
        found.append(predict(fitted.model, data, fold.train, here, fitted.scaling)["logits"])
    difference = float(np.abs(found[0] - found[1]).max())
    return [f"{fusion}, {precision}", difference, TOLERANCE[precision], difference <= TOLERANCE[precision]]


def speed(work: Work, device: str, precision: Precision, share: float, *settings: str) -> list[Any]:
    """A row: seconds of the whole, from the fastest of three epochs on that share of the utterances."""
    n = round(work.utterances * share)
    data, fold, plan = made_up(work.fusion, lengths(work.fusion, n), "epochs=3", *settings)
    fitted = fit(data, fold, replace(plan, device=device, precision=precision))
    seconds = min(line["seconds"] for line in fitted.history) / share * work.epochs
    return [f"{work.what}, {precision}", seconds, work.target, seconds <= work.target]


def main(device: str = "cuda", small: str = "") -> int:
    """Print both tables and return the exit code."""
    tiny = ("d_model=16", "heads=2") if small else ()
    precisions: tuple[Precision, ...] = ("float32", "bf16")
    checks = [parity(work.fusion, device, precision, *tiny) for work in TABLES for precision in precisions]
    print(tabulate(checks, ["CPU against " + device, "difference", "tolerance", "holds"], floatfmt=".2g"), flush=True)
    times = [
        speed(work, device, precision, 0.02 if small else 1.0, *tiny) for work in TABLES for precision in precisions
    ]
    print(tabulate(times, [device, "seconds", "target", "holds"], floatfmt=".4g"))
    return 0 if all(row[-1] for row in [*checks, *times]) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
