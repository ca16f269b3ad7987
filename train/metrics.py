"""Scores of predicted against true classes. Every score lies in [0, 1]; WA and UA are never called "accuracy".

K classes, C[k, j] = utterances of class k predicted as j, n = all utterances.

>>> scores([0, 0, 0, 1], [0, 0, 1, 1], ("ang", "sad"))["wa"]
0.75
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def confusion(truth: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """C [K, K] int64: rows are true classes, columns predicted ones."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(truth, predicted, labels=list(range(classes)))


def confusions(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """C [R, K, K] of many predictions [R, n] of the same utterances, whose true classes are [n].

    As `confusion`, for what is looked at after every epoch: that takes milliseconds, and its import most of a second.
    """
    cells = truth * classes + predicted + np.arange(len(predicted))[:, None] * classes**2
    return np.bincount(cells.ravel(), minlength=len(predicted) * classes**2).reshape(-1, classes, classes)


def weighted_accuracy(matrix: np.ndarray) -> float:
    """WA = Σ_k C[k, k] / n: the share of utterances that are right, so classes weigh by their size."""
    return float(np.trace(matrix) / matrix.sum())


def recalls(matrix: np.ndarray) -> list[float | None]:
    """C[k, k] / Σ_j C[k, j] of each class; None where the class has no utterance."""
    return [float(row[k] / row.sum()) if row.sum() else None for k, row in enumerate(matrix)]


def unweighted_accuracy(matrix: np.ndarray) -> float:
    """UA = mean over the classes that occur of C[k, k] / Σ_j C[k, j]: every class weighs the same."""
    return float(np.mean([recall for recall in recalls(matrix) if recall is not None]))


def scores(truth: Sequence[int], predicted: Sequence[int], classes: Sequence[str]) -> dict[str, Any]:
    """All scores of one set of predictions.

    `wa`, `ua` as above; `macro_f1` and `weighted_f1` are the means of F1_k = 2 C[k, k] / (Σ_j C[k, j] + Σ_j C[j, k])
    over the classes that occur, even or weighted by their size; `per_class` the recalls by name; `confusion` C.
    """
    from sklearn.metrics import f1_score

    matrix = confusion(truth, predicted, len(classes))
    present = np.flatnonzero(matrix.sum(axis=1)).tolist()
    return {
        "wa": weighted_accuracy(matrix),
        "ua": unweighted_accuracy(matrix),
        "macro_f1": float(f1_score(truth, predicted, labels=present, average="macro", zero_division=0)),
        "weighted_f1": float(f1_score(truth, predicted, labels=present, average="weighted", zero_division=0)),
        "per_class": dict(zip(classes, recalls(matrix), strict=True)),
        "confusion": matrix.tolist(),
        "n": int(matrix.sum()),
    }


def pooled(results: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """The same scores of all folds' utterances taken together, from the folds' confusion matrices, which add up."""
    matrix = np.sum([np.asarray(result["confusion"]) for result in results], axis=0)
    sizes = matrix.sum(axis=1)
    present = sizes > 0
    f1 = 2 * matrix.diagonal() / np.maximum(sizes + matrix.sum(axis=0), 1)
    return {
        "wa": weighted_accuracy(matrix),
        "ua": unweighted_accuracy(matrix),
        "macro_f1": float(f1[present].mean()),
        "weighted_f1": float(f1 @ sizes / sizes.sum()),
        "per_class": dict(zip(classes, recalls(matrix), strict=True)),
        "confusion": matrix.tolist(),
        "n": int(matrix.sum()),
    }


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n − 1); None for the deviation of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
