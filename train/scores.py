"""Every score of predictions, and its interval: the only place that computes them.

Of runs, report/cell_scores.py adds up the counts that these scores are made of.

`python -m benchmarks.statistics` simulates how often the intervals hold the truth. Axis letters:

    R  runs     S  seeds     K  classes     g  groups     D  dimensions: valence, arousal and dominance
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .data.labels import DIMENSIONS

METRICS = ("wa", "ua", "macro_f1", "weighted_f1")
SHOWN = {"UA": "ua", "WA": "wa", "macro-F1": "macro_f1"}  # wherever scores are shown
SCORED = {metric: f"{name} %" for name, metric in SHOWN.items()} | {
    "ccc": "mean CCC"
}  # what selects, in a heading
BINS = 15  # of confidence, equally wide (Guo et al. 2017, §2)
TEMPERATURES = (0.05, 20.0)  # the lowest and the highest that may be fitted
LEVEL = 0.9  # of conformal sets: the share that is to hold the true class
PERCENT = (0.0, 100.0)  # no interval of a share leaves them
FEWEST = 4  # groups of an interval: of fewer, it is too wide or too uncertain to say anything
Ends = tuple[
    float, float | None, float | None
]  # a value and the ends of its 95 % interval, if it has one


def confusions(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """C `[R, K, K]` of the predictions `[R, n]` of the same utterances: rows are true classes
    `[n]`, columns predicted.

    >>> confusions(np.array([0, 0, 1]), np.array([[0, 1, 1]]), 2).tolist()
    [[[1, 1], [0, 1]]]
    """
    cells = truth * classes + predicted + np.arange(len(predicted))[:, None] * classes**2
    return np.bincount(cells.ravel(), minlength=len(predicted) * classes**2).reshape(
        -1, classes, classes
    )


def metrics(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of one matrix C or many, `[…, K, K]` → `[…]` in [0, 1]; NaN where there is nothing
    to count.

    recalls      `[…, K]`: C[k, k] / Σ_j C[k, j]; NaN for a class without an utterance
    wa           Σ_k C[k, k] / n: the share of utterances that are right, so classes weigh by their size
    ua           the mean recall of the classes that occur: every class weighs the same
    macro_f1     the mean over the classes that occur of F1_k = 2 C[k, k] / (Σ_j C[k, j] + Σ_j C[j, k])
    weighted_f1  the mean of F1_k, weighted by the classes' sizes

    >>> {name: values.round(3).tolist() for name, values in metrics(np.array([[9, 0], [1, 0]])).items()}
    {'recalls': [1.0, 0.0], 'wa': 0.9, 'ua': 0.5, 'macro_f1': 0.474, 'weighted_f1': 0.853}
    """

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.where(below > 0, above / np.maximum(below, 1), np.nan)

    sizes, right = matrix.sum(-1), np.diagonal(matrix, axis1=-2, axis2=-1)  # […, K]
    n, present = sizes.sum(-1), (sizes > 0).sum(-1)
    recalls, f1 = (
        ratio(right, sizes),
        np.where(sizes > 0, ratio(2 * right, sizes + matrix.sum(-2)), 0),
    )
    return {
        "recalls": recalls,
        "wa": ratio(right.sum(-1), n),
        "ua": ratio(np.nan_to_num(recalls).sum(-1), present),
        "macro_f1": ratio(f1.sum(-1), present),
        "weighted_f1": ratio((f1 * sizes).sum(-1), n),
    }


def scores(
    truth: Sequence[int], predicted: Sequence[int], classes: Sequence[str]
) -> dict[str, Any]:
    """All scores of one set of predictions, as a run's result.json holds them.

    `METRICS`; `per_class`, the recalls by name, None for a class that does not occur; `confusion`
    C; `n`.

    >>> scores([0, 0, 1], [0, 1, 1], ("ang", "hap", "sad"))["per_class"]
    {'ang': 0.5, 'hap': 1.0, 'sad': None}
    """
    [matrix] = confusions(np.asarray(truth), np.asarray(predicted)[None], len(classes))
    values = metrics(matrix)
    recalls = [None if np.isnan(recall) else recall for recall in values["recalls"].tolist()]
    return {
        **{name: float(values[name]) for name in METRICS},
        "per_class": dict(zip(classes, recalls, strict=True)),
        "confusion": matrix.tolist(),
        "n": int(matrix.sum()),
    }


def reliability(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """What a reliability diagram shows of p `[n, K]`: `[BINS, 3]`, for each bin n, Σ confidence and
    the hits.

    The confidence is the highest probability c; bin b takes b / BINS < c ≤ (b + 1) / BINS.
    """
    confidence, right = probabilities.max(1).astype(float), probabilities.argmax(1) == truth
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return np.stack(
        [np.bincount(bins, weights, BINS) for weights in (np.ones(len(bins)), confidence, right)], 1
    )


def ece(bins: np.ndarray) -> float:
    """The expected calibration error in [0, 1], Σ_b n_b / n · |share right − mean confidence| (Guo
    et al. 2017, eq. 3).

    >>> ece(reliability(np.array([0, 1]), np.array([[0.75, 0.25], [0.75, 0.25]])))  # 75 % sure, 50 % right
    0.25
    """
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities `[n, K]` of the logits divided by T, softmax(log p / T); their order in a row
    does not change.
    """
    from scipy.special import softmax

    tiny = np.finfo(np.float32).tiny
    return softmax(np.log(np.maximum(probabilities, tiny, dtype=float)) / temperature, axis=1)


def fit_temperature(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """T within `TEMPERATURES` with the least mean −log p of the true classes (Guo et al. 2017,
    §4.2).
    """
    from scipy.optimize import minimize_scalar

    def nll(log_t: float) -> float:
        p = tempered(probabilities, np.exp(log_t))[np.arange(len(truth)), truth]
        return -float(np.log(np.maximum(p, 1e-300)).mean())

    return float(np.exp(minimize_scalar(nll, bounds=np.log(TEMPERATURES), method="bounded").x))


def conformal_threshold(
    truth: np.ndarray, probabilities: np.ndarray, level: float = LEVEL
) -> float:
    """The lowest probability of a class in its set: split conformal prediction with the score 1 − p
    of the true class.

    Of n calibration utterances the ⌈(n + 1) · level⌉-th smallest score is the largest to be taken
    in (LAC; Sadinle, Lei & Wasserman 2019); 0, so that every class is, where n is too small. Were
    new utterances exchangeable with these, as those of other speakers are not, a share of at least
    `level` of the sets would hold the true class.
    """
    scores = np.sort(probabilities[np.arange(len(truth)), truth])[::-1]
    rank = int(np.ceil(round((len(scores) + 1) * level, 9)))
    return float(scores[rank - 1]) if rank <= len(scores) else 0.0


def moments(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What the scores of ratings `[n, D]` add up: 1, t, p, t², p² and t p of each, `[n, D, 6]`."""
    t, p = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    return np.stack([np.ones_like(t), t, p, t * t, p * p, t * p], axis=2)


def concordance(summed: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of summed `moments` M, `[…, 6]` → `[…]`; NaN where there is nothing to count.

    ccc   Lin's concordance correlation coefficient (1989): 2 s_tp / (s_t² + s_p² + (mean t − mean p)²), with variances
          and covariance over n; 0 where nothing varies
    rmse  √(Σ (t − p)² / n), in the units of the ratings

    >>> scores = concordance(moments([[1.0], [2.0], [3.0]], [[1.0], [2.0], [6.0]]).sum(0))
    >>> {name: values.round(3).tolist() for name, values in scores.items()}
    {'ccc': [0.526], 'rmse': [1.732]}
    """
    n, *sums = np.moveaxis(summed, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        t, p, tt, pp, tp = (total / n for total in sums)
        below = (tt - t * t) + (pp - p * p) + (t - p) ** 2
        ccc = np.where(below > 1e-12, 2 * (tp - t * p) / below, 0 * below)
        return {"ccc": ccc, "rmse": np.sqrt(np.maximum(tt - 2 * tp + pp, 0))}


def dimension_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """All scores of predicted valence, arousal and dominance `[n, D]`, as a run's result.json holds
    them.

    `ccc` and `rmse` by dimension; their `moments` M `[D, 6]`; `n`.
    """
    summed = moments(truth, predicted).sum(0)
    named = {
        name: dict(zip(DIMENSIONS, values.tolist(), strict=True))
        for name, values in concordance(summed).items()
    }
    return {**named, "moments": summed.tolist(), "n": len(truth)}


def divergences(votes: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """How far probabilities q `[n, K]` are from the raters' shares p `[n, K]`, `[n]` each, in nats.

    kl  Σ_k p_k log(p_k / q_k)
    js  half of KL(p ‖ m) and half of KL(q ‖ m) with m = (p + q) / 2: from 0 to log 2

    >>> {name: float(each[0].round(3)) for name, each in divergences(np.eye(2)[:1], np.array([[0.5, 0.5]])).items()}
    {'kl': 0.693, 'js': 0.216}
    """
    from scipy.special import rel_entr

    p, q = (
        np.maximum(each, np.finfo(np.float32).tiny, dtype=float) for each in (votes, probabilities)
    )
    halves = [rel_entr(each, (p + q) / 2).sum(1) / 2 for each in (p, q)]
    return {"kl": rel_entr(p, q).sum(1), "js": halves[0] + halves[1]}


def rater_scores(matrix: np.ndarray, left_out: int) -> dict[str, Any] | None:
    """The scores of the raters' votes C `[K, K]`, see `labels.rater_votes`, and n; None without
    votes.
    """
    n = int(matrix.sum())
    if n == 0:
        return None
    scored = metrics(matrix)
    own = {name: float(scored[name]) for name in SHOWN.values()}
    return {**own, "n": n, "left_out": left_out, "confusion": matrix.tolist()}


def jackknife_interval(whole: Any, without: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of an estimate θ `[…]` from its values θ₍ᵢ₎ `[…, g]` without each of the g
    groups.

    θ ± t₀.₉₇₅ √((g − 1) / g · Σᵢ (θ₍ᵢ₎ − mean)²), t with g − 1 degrees of freedom: Student's t on
    the jackknife's pseudo-values (Tukey 1958), about the estimate itself. For a mean it is the
    interval of the t-test.

    >>> low, high = jackknife_interval(2.0, np.array([2.5, 2.0, 1.5]))  # the mean of 1, 2, 3
    >>> round(float(low), 3), round(float(high), 3)  # 2 ± 4.303 / √3
    (-0.484, 4.484)
    """
    from scipy.stats import t

    half = t.ppf(0.975, without.shape[-1] - 1) * np.sqrt((without.shape[-1] - 1) * without.var(-1))
    return whole - half, whole + half


def average(
    values: np.ndarray, groups: Sequence[Any] | np.ndarray, ends: tuple[float, float] = PERCENT
) -> Ends:
    """The mean of n predictions' values, such as 100 or 0 each, with its interval over their
    groups, within `ends`.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    n, sums = np.bincount(group), np.bincount(group, values)
    whole = float(sums.sum() / n.sum())
    return within(ends, whole, (sums.sum() - sums) / np.maximum(n.sum() - n, 1))


def within(ends: tuple[float, float], whole: float, without: np.ndarray) -> Ends:
    """The value and its `jackknife_interval`, which does not leave `ends`.

    None of fewer than `FEWEST` groups, nor where each says the same, such as 100 %: that is not to
    be certain.
    """
    if len(without) < FEWEST or np.ptp(without) < 1e-9:  # of rounding
        return whole, None, None
    low, high = jackknife_interval(whole, without)
    return whole, max(ends[0], float(low)), min(ends[1], float(high))
