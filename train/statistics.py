"""How sure a score is, and whether two cells differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .metrics import confusion, unweighted_accuracy, weighted_accuracy

SCORES: dict[str, Callable[[np.ndarray], float]] = {"wa": weighted_accuracy, "ua": unweighted_accuracy}


@dataclass(frozen=True)
class Interval:
    """A score with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(
    truth: Sequence[int],
    predicted: Sequence[int],
    classes: int,
    score: Literal["wa", "ua"],
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of a score: 2.5 and 97.5 % of its values on `resamples` drawn samples.

    Draws utterances with replacement, or whole groups where `groups` [n] names one (such as the speaker) for each
    utterance: utterances of a speaker are alike, so the interval over speakers is the wider and the honest one.
    """
    names = np.arange(len(truth)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    # One confusion matrix per group [g, K, K]: a resample is a sum of matrices, whatever is drawn.
    matrices = np.zeros((int(names.max()) + 1, classes, classes))
    np.add.at(matrices, (names, np.asarray(truth), np.asarray(predicted)), 1)
    rng = np.random.default_rng(seed)
    flat = matrices.reshape(len(matrices), -1)
    drawn = rng.multinomial(len(matrices), np.full(len(matrices), 1 / len(matrices)), size=resamples) @ flat
    values = [SCORES[score](matrix) for matrix in drawn.reshape(-1, classes, classes)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(SCORES[score](confusion(truth, predicted, classes)), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """A paired test: `difference` = first − second; `p` of the null hypothesis that the two do not differ."""

    test: str
    difference: float
    p: float
    n: int


def mcnemar(truth: Sequence[int], first: Sequence[int], second: Sequence[int]) -> Comparison:
    """McNemar's exact test (1947) on the utterances that just one of two cells gets right.

    p = min(1, 2 · P(X ≤ min(b, c))), X ~ Binomial(b + c, ½), with b right in `first` alone and c in `second` alone.
    """
    from scipy.stats import binomtest

    right_first = np.asarray(first) == np.asarray(truth)
    right_second = np.asarray(second) == np.asarray(truth)
    b, c = int(np.sum(right_first & ~right_second)), int(np.sum(~right_first & right_second))
    p = float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0
    return Comparison("McNemar", (b - c) / len(right_first), p, len(right_first))


def paired_t(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Student's t on the differences of scores that share seed and fold; needs two pairs or more."""
    from scipy.stats import ttest_rel

    differences = np.asarray(first) - np.asarray(second)
    if len(differences) < 2:
        raise ValueError("a paired t-test needs two pairs of scores or more")
    p = float(ttest_rel(first, second).pvalue) if np.any(differences) else 1.0
    return Comparison("paired t", float(differences.mean()), p, len(differences))


def wilcoxon(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Wilcoxon's signed-rank test on the differences of scores that share seed and fold."""
    from scipy.stats import wilcoxon as signed_rank

    differences = np.asarray(first) - np.asarray(second)
    p = float(signed_rank(differences).pvalue) if np.any(differences) else 1.0
    return Comparison("Wilcoxon", float(differences.mean()), p, len(differences))


def against(scores: Sequence[float], quoted: float) -> Comparison:
    """Student's t of the seeds' scores against one number that somebody else published (Perspective Table 4)."""
    from scipy.stats import ttest_1samp

    differences = np.asarray(scores) - quoted
    if np.ptp(differences) == 0:  # the deviation is zero, so t is undefined
        return Comparison("one-sample t", float(differences[0]), 1.0 if differences[0] == 0 else 0.0, len(differences))
    return Comparison(
        "one-sample t", float(differences.mean()), float(ttest_1samp(scores, quoted).pvalue), len(differences)
    )
