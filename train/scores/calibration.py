"""How sure a model is, and how sure it may be: reliability, temperature, conformal sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .classes import predicted_classes
from .intervals import Ends, average

BINS = 15  # of confidence, equally wide (Guo et al. 2017, §2)
TEMPERATURES = (0.05, 20.0)  # the lowest and the highest that may be fitted
LEVEL = 0.9  # of conformal sets: the share that is to hold the true class


def confidences(probabilities: np.ndarray) -> np.ndarray:
    """How sure each prediction is: its highest probability, `[n, K]` → `[n]`."""
    return probabilities.max(1)


def given_to_the_truth(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The probability of the true class of each prediction, `[n]`, `[n, K]` → `[n]`."""
    return probabilities[np.arange(len(truth)), truth]


def reliability(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """What a reliability diagram shows of p `[n, K]`, `[BINS, 3]`: n, Σ confidence and the hits.

    The confidence is the highest probability c; bin b takes b / BINS < c ≤ (b + 1) / BINS.
    """
    confidence = confidences(probabilities).astype(float)
    right = predicted_classes(probabilities) == truth
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)

    counts = np.bincount(bins, np.ones(len(bins)), BINS)
    summed_confidence = np.bincount(bins, confidence, BINS)
    hits = np.bincount(bins, right, BINS)
    return np.stack([counts, summed_confidence, hits], 1)


def percent_of_bins(bins: np.ndarray) -> np.ndarray:
    """Mean confidence and share right in percent, and n, of each bin that holds a prediction."""
    filled = bins[bins[:, 0] > 0]
    n = filled[:, 0]
    return np.stack([100 * filled[:, 1] / n, 100 * filled[:, 2] / n, n], 1)


def ece(bins: np.ndarray) -> float:
    """The expected calibration error in [0, 1] of the bins of `reliability`.

    Σ_b n_b / n · |share right − mean confidence| (Guo et al. 2017, eq. 3).

    >>> ece(reliability(np.array([0, 1]), np.array([[0.75, 0.25], [0.75, 0.25]])))  # 50 % are right
    0.25
    """
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


def reliability_over_seeds(
    truth: np.ndarray, probabilities: np.ndarray, seeds: np.ndarray
) -> tuple[float, np.ndarray]:
    """The ECE in percent, pooled within each of the `seeds` `[n]`, then the mean over the seeds.

    And the bins `[BINS, 3]` of all predictions.
    """
    errors = []
    total = np.zeros((BINS, 3))
    for seed in np.unique(seeds):
        bins = reliability(truth[seeds == seed], probabilities[seeds == seed])
        errors.append(ece(bins))
        total += bins
    return 100 * float(np.mean(errors)), total


def tempered(probabilities: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Probabilities `[n, K]` of the logits divided by T, softmax(log p / T).

    T is one number, or one for each row `[n, 1]`. The order within a row does not change.
    """
    from scipy.special import softmax

    tiny = np.finfo(np.float32).tiny
    return softmax(np.log(np.maximum(probabilities, tiny, dtype=float)) / temperature, axis=1)


def fit_temperature(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """T within `TEMPERATURES` with the least mean −log p of the true classes.

    Guo et al. 2017, §4.2.
    """
    from scipy.optimize import minimize_scalar

    def nll(log_t: float) -> float:
        p = given_to_the_truth(truth, tempered(probabilities, np.exp(log_t)))
        return -float(np.log(np.maximum(p, 1e-300)).mean())

    fitted = minimize_scalar(nll, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(fitted.x))


@dataclass(frozen=True)
class Temperature:
    """The temperature that a run applies."""

    temperature: float
    """1 where none could be fitted."""
    fault: str | None = None
    """Why it was not fitted."""


def choose_temperature(truth: np.ndarray, probabilities: np.ndarray) -> Temperature:
    """The fitted temperature, or 1 where the dev part `[n]`, `[n, K]` does not say what it is.

    Where all are right, the best temperature is 0: it would call the next mistake certain. One at
    a bound says no more.
    """
    if (predicted_classes(probabilities) == truth).all():
        return Temperature(1.0, "dev has no error")

    temperature = fit_temperature(truth, probabilities)
    if count_at_a_bound([temperature]):
        return Temperature(1.0, "the fit ended at a bound")
    return Temperature(temperature)


def count_at_a_bound(temperatures: Sequence[float]) -> int:
    """How many fitted temperatures are at one of the bounds `TEMPERATURES`."""
    at_a_bound = [np.isclose(fitted, TEMPERATURES, rtol=1e-3).any() for fitted in temperatures]
    return int(np.count_nonzero(at_a_bound))


def conformal_threshold(
    truth: np.ndarray, probabilities: np.ndarray, level: float = LEVEL
) -> float:
    """The lowest probability of a class in its set, from calibration utterances `[n]`, `[n, K]`.

    Split conformal prediction with the score 1 − p of the true class. Of n calibration utterances
    the ⌈(n + 1) · level⌉-th smallest score is the largest to be taken in (LAC; Sadinle, Lei &
    Wasserman 2019); 0, so that every class is, where n is too small. Were new utterances
    exchangeable with these, as those of other speakers are not, a share of at least `level` of the
    sets would hold the true class.
    """
    highest_first = np.sort(given_to_the_truth(truth, probabilities))[::-1]
    # Rounded, so that 10 · 0.9 is not a bit above 9.
    rank = int(np.ceil(round((len(truth) + 1) * level, 9)))
    if rank > len(truth):
        return 0.0
    return float(highest_first[rank - 1])


def conformal_sets(
    truth: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    groups: Sequence[Any] | np.ndarray,
) -> tuple[Ends, float]:
    """The share of the sets that hold the true class, in percent over `groups`; their mean size.

    `thresholds` `[n]` are those of `conformal_threshold` for each prediction.
    """
    in_set = probabilities >= thresholds[:, None]
    covered = given_to_the_truth(truth, in_set)
    return average(100 * covered, groups), float(in_set.sum(1).mean())


def abstention(
    right: np.ndarray, confidence: np.ndarray, groups: np.ndarray, below: float
) -> tuple[Ends, Ends | None]:
    """Shares in percent, over `groups`, if no answer is given `below` a confidence.

    The share of the predictions `[n]` that is answered, and the share of those that is `right`;
    None for the second where none is answered.
    """
    answered = confidence >= below
    right_of_answered = None
    if answered.any():
        right_of_answered = average(100 * right[answered], groups[answered])
    return average(100 * answered, groups), right_of_answered
