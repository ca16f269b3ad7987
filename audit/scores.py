"""The scores of predictions: pooled over folds, then the mean over seeds, as every table of ser.

n  predictions     K  classes     F  folds     S  seeds
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ser.train.scores.classes import METRICS, confusions, metrics

from .evidence import Predictions, rows_of

# How people write them.
NAMES = {"ua": "UA", "wa": "WA", "macro_f1": "macro-F1", "weighted_f1": "weighted F1"}


@dataclass(frozen=True)
class Scored:
    """The scores of one system by metric, in [0, 1]."""

    pooled: dict[str, float]
    """Of all predictions of a seed together, then the mean over the seeds."""

    mean_of_folds: dict[str, float]
    """The mean over the folds of a seed, then over the seeds."""

    by_seed: dict[str, dict[str, float]]
    """Pooled, by seed; a single entry where no seed is named."""

    by_fold: dict[str, dict[str, float]]
    """By fold, over all its seeds; a single entry where no fold is named."""

    n: int
    """How many utterances are predicted, each once."""


def score(predictions: Predictions) -> Scored:
    """All scores of one system."""
    return _score(_Hashable(predictions))


@cache
def _by_epoch(hashable: "_Hashable") -> dict[str, Predictions]:
    predictions = hashable.predictions
    rows: dict[str, list[int]] = {}
    for row, epoch in enumerate(predictions.epochs or []):
        rows.setdefault(epoch, []).append(row)
    return {epoch: rows_of(predictions, of_epoch) for epoch, of_epoch in rows.items()}


def predictions_by_epoch(predictions: Predictions) -> dict[str, Predictions]:
    """Those of each epoch by its name; nothing where none is named."""
    return _by_epoch(_Hashable(predictions))


class _Hashable:
    """Predictions as a key of a cache: the same object."""

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions

    def __hash__(self) -> int:
        return id(self.predictions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and other.predictions is self.predictions


@cache
def _score(hashable: _Hashable) -> Scored:
    predictions = hashable.predictions
    n = len(predictions)
    truth, predicted, classes = class_numbers(predictions)
    seeds, seed_names = numbered(predictions.seeds or [""] * n)
    folds, fold_names = numbered(predictions.folds or [""] * n)

    by_seed = {}
    fold_means = []
    for seed, seed_name in sorted(enumerate(seed_names), key=lambda pair: pair[1]):
        of_seed = seeds == seed
        by_seed[seed_name] = scores_of(truth[of_seed], predicted[of_seed], classes)
        of_folds = []
        for fold in np.unique(folds[of_seed]):
            rows = of_seed & (folds == fold)
            of_folds.append(scores_of(truth[rows], predicted[rows], classes))
        fold_means.append(_mean(of_folds))

    by_fold = {}
    for fold, fold_name in sorted(enumerate(fold_names), key=lambda pair: pair[1]):
        rows = folds == fold
        by_fold[fold_name] = scores_of(truth[rows], predicted[rows], classes)

    return Scored(
        pooled=_mean(list(by_seed.values())),
        mean_of_folds=_mean(fold_means),
        by_seed=by_seed,
        by_fold=by_fold,
        n=len(set(predictions.ids)),
    )


def class_numbers(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, int]:
    """Truth and prediction as class numbers `[n]`, and how many classes there are."""
    n = len(predictions)
    numbers, names = numbered([*predictions.truth, *predictions.predicted, *predictions.classes])
    return numbers[:n], numbers[n : 2 * n], len(names)


def numbered(values: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The number of each value `[n]`, and the different values in the order of their numbers."""
    names = list(dict.fromkeys(values))
    number = {name: place for place, name in enumerate(names)}
    return np.fromiter(map(number.__getitem__, values), int, len(values)), names


def scores_of(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """The `METRICS` of predictions `[n]`, in [0, 1]."""
    values = metrics(confusions(truth, predicted[None], classes)[0])
    return {metric: float(values[metric]) for metric in METRICS}


def agrees(claimed: float, measured: float, rounding: float) -> bool:
    """Whether a score rounds to the claimed one, in either way of rounding a half."""
    return abs(claimed - measured) <= rounding * (1 + 1e-6)


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {metric: float(np.mean([found[metric] for found in scores])) for metric in METRICS}
