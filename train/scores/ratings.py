"""Scores of predicted valence, arousal and dominance, all from sums of moments."""

from typing import Any

import numpy as np

from ..data.utterances import DIMENSIONS


def moments(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What the scores of ratings `[n, D]` add up: 1, t, p, t², p² and t p of each, `[n, D, 6]`."""
    t = np.asarray(truth, dtype=np.float64)
    p = np.asarray(predicted, dtype=np.float64)
    return np.stack([np.ones_like(t), t, p, t * t, p * p, t * p], axis=2)


def concordance(summed: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of summed `moments` M, `[…, 6]` → `[…]`; NaN where there is nothing to count.

    ccc   Lin's concordance correlation coefficient (1989):
          2 s_tp / (s_t² + s_p² + (mean t − mean p)²), with variances and covariance over n;
          0 where nothing varies
    rmse  √(Σ (t − p)² / n), in the units of the ratings

    >>> scores = concordance(moments([[1.0], [2.0], [3.0]], [[1.0], [2.0], [6.0]]).sum(0))
    >>> {name: values.round(3).tolist() for name, values in scores.items()}
    {'ccc': [0.526], 'rmse': [1.732]}
    """
    n = summed[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_t = summed[..., 1] / n
        mean_p = summed[..., 2] / n
        mean_tt = summed[..., 3] / n
        mean_pp = summed[..., 4] / n
        mean_tp = summed[..., 5] / n

        variances = (mean_tt - mean_t * mean_t) + (mean_pp - mean_p * mean_p)
        denominator = variances + (mean_t - mean_p) ** 2
        covariance = mean_tp - mean_t * mean_p
        # 0 · NaN stays NaN, where there is nothing to count.
        ccc = np.where(denominator > 1e-12, 2 * covariance / denominator, 0 * denominator)

        squared_error = mean_tt - 2 * mean_tp + mean_pp
        return {"ccc": ccc, "rmse": np.sqrt(np.maximum(squared_error, 0))}


def sliced_means(
    truth: np.ndarray, predicted: np.ndarray, slices: int
) -> list[tuple[float, float, int]]:
    """Mean prediction, mean rating and n of each of at most so many slices of the predictions.

    `truth` and `predicted` `[n]` are of one dimension; the slices are of the predictions in their
    order, of equally many each.
    """
    in_order = np.argsort(predicted, kind="stable")

    means = []
    for places in np.array_split(in_order, min(slices, len(in_order))):
        means.append((float(predicted[places].mean()), float(truth[places].mean()), len(places)))
    return means


def dimension_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """All scores of predicted ratings `[n, D]`, as a run's result.json holds them.

    `ccc` and `rmse` by dimension; their `moments` M `[D, 6]`; `n`.
    """
    summed = moments(truth, predicted).sum(0)

    result: dict[str, Any] = {}
    for name, values in concordance(summed).items():
        result[name] = dict(zip(DIMENSIONS, values.tolist(), strict=True))
    result["moments"] = summed.tolist()
    result["n"] = len(truth)
    return result
