"""Scores of predicted classes, all from confusion matrices."""

from collections.abc import Sequence
from typing import Any

import numpy as np

METRICS = ("wa", "ua", "macro_f1", "weighted_f1")


def predicted_classes(probabilities: np.ndarray) -> np.ndarray:
    """The number of the most probable class, `[…, K]` → `[…]`; the first of equals."""
    return probabilities.argmax(-1)


def chance(classes: int) -> float:
    """The UA in percent that guesses have, 100 / K; WA and F1 depend on the classes' sizes."""
    return 100 / classes


def percent_of_truth(matrix: np.ndarray) -> np.ndarray:
    """C `[K, K]` in percent of each true class; 0 for a class without an utterance."""
    return 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def confusions(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """C `[R, K, K]` of R predictions of the same utterances.

    `truth` `[n]` and `predicted` `[R, n]` are class numbers. Rows of C are true classes, columns
    predicted ones.

    >>> confusions(np.array([0, 0, 1]), np.array([[0, 1, 1]]), 2).tolist()
    [[[1, 1], [0, 1]]]
    """
    runs = len(predicted)
    first_cell = np.arange(runs)[:, None] * classes**2
    cells = first_cell + truth * classes + predicted

    counts = np.bincount(cells.ravel(), minlength=runs * classes**2)
    return counts.reshape(-1, classes, classes)


def metrics(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of one matrix C or many, `[…, K, K]` → `[…]` in [0, 1].

    NaN where there is nothing to count.

    recalls      `[…, K]`: C[k, k] / Σ_j C[k, j]; NaN for a class without an utterance
    wa           Σ_k C[k, k] / n: the share of utterances that are right, so classes weigh by size
    ua           the mean recall of the classes that occur: every class weighs the same
    macro_f1     the mean over the classes that occur of
                 F1_k = 2 C[k, k] / (Σ_j C[k, j] + Σ_j C[j, k])
    weighted_f1  the mean of F1_k, weighted by the classes' sizes

    >>> by_name = metrics(np.array([[9, 0], [1, 0]]))
    >>> {name: values.round(3).tolist() for name, values in by_name.items()}
    {'recalls': [1.0, 0.0], 'wa': 0.9, 'ua': 0.5, 'macro_f1': 0.474, 'weighted_f1': 0.853}
    """
    right = np.diagonal(matrix, axis1=-2, axis2=-1)  # […, K]
    sizes = matrix.sum(-1)  # […, K]
    times_predicted = matrix.sum(-2)  # […, K]
    n = sizes.sum(-1)
    classes_that_occur = (sizes > 0).sum(-1)

    recalls = _ratio(right, sizes)
    f1 = np.where(sizes > 0, _ratio(2 * right, sizes + times_predicted), 0)

    return {
        "recalls": recalls,
        "wa": _ratio(right.sum(-1), n),
        "ua": _ratio(np.nan_to_num(recalls).sum(-1), classes_that_occur),
        "macro_f1": _ratio(f1.sum(-1), classes_that_occur),
        "weighted_f1": _ratio((f1 * sizes).sum(-1), n),
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient of counts; NaN where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def scores(
    truth: Sequence[int], predicted: Sequence[int], classes: Sequence[str]
) -> dict[str, Any]:
    """All scores of one set of predictions, as a run's result.json holds them.

    `METRICS`; `per_class`, the recalls by name, None for a class that does not occur; `confusion`
    C; `n`.

    >>> scores([0, 0, 1], [0, 1, 1], ("ang", "hap", "sad"))["per_class"]
    {'ang': 0.5, 'hap': 1.0, 'sad': None}
    """
    matrix = confusions(np.asarray(truth), np.asarray(predicted)[None], len(classes))[0]
    values = metrics(matrix)

    per_class = {}
    for name, recall in zip(classes, values["recalls"].tolist(), strict=True):
        per_class[name] = None if np.isnan(recall) else recall

    result: dict[str, Any] = {name: float(values[name]) for name in METRICS}
    result["per_class"] = per_class
    result["confusion"] = matrix.tolist()
    result["n"] = int(matrix.sum())
    return result
