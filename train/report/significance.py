"""Tests between cells: the only place that computes them.

`python -m benchmarks.statistics` simulates how often they find what is not there. Axis letters as
in train/scores.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ser.train.scores import Ends, jackknife_interval

from .cell_scores import CellScores, Score, how_many

TO_TEST = 6  # groups of a test: of five, the p of the sign flips is never below 2 / 2⁵ = 0.06
FLIPS = 9_999  # patterns of signs that a test draws where there are more
AT_A_TIME = 10**6  # signs in memory at once


@dataclass(frozen=True)
class Comparison:
    """Two cells, or a cell and a quoted number."""

    difference: Ends  # first − second, in points
    p: float | None  # of the null hypothesis that the two do not differ
    about: str  # which test, over what


def compare(
    first: CellScores,
    second: CellScores,
    metric: str = "ua",
    claimed: int = 0,
    tests: Sequence[str] = ("both", "both"),
) -> Comparison | None:
    """The difference of two cells' pooled UA or WA in points, on the utterances that both tested,
    with all their seeds.

    Its interval is `jackknife_interval` and its test `sign_flip`, over speakers, or over dialogues
    where there are too few speakers; neither of fewer than `TO_TEST` groups. `claimed`: 1 tests
    one-sided whether the first is better, −1 whether the second is. `tests` are the modalities that
    each model was given. None if the cells share no utterance or have other classes.
    """
    theirs = set(second.tested)
    if first.classes != second.classes or theirs.isdisjoint(first.tested):
        return None
    for over, groups in first.groupings.items():
        shared = {
            pair: group for pair, group in zip(first.tested, groups, strict=True) if pair in theirs
        }
        about = how_many(g := len(set(shared.values())), over)
        if g >= TO_TEST:
            break
    sides = zip((first, second), tests, strict=True)
    one, two = (
        cell.by_group([shared.get(pair) for pair in cell.tested], test) for cell, test in sides
    )
    parts = contributions(one, metric) - contributions(two, metric)
    difference = float(parts.sum().round(9)) + 0.0  # no −0.00 of rounding
    if g < TO_TEST:
        return Comparison((difference, None, None), None, f"no test: {about}")
    without = [np.nanmean(first.measure(metric, m.sum(0) - m), 1) for m in (one, two)]
    low, high = map(float, jackknife_interval(parts.sum(), without[0] - without[1]))
    p = float(sign_flip(parts * (claimed or 1), sides=1 if claimed else 2))
    return Comparison((difference, low, high), p, f"{'one' if claimed else 'two'}-sided, {about}")


def contributions(matrices: np.ndarray, metric: str) -> np.ndarray:
    """Each group's part in the UA or WA of C `[…, g, S, K, K]`, in percent, `[…, g]`; the parts add
    up to the score.

    The mean over the seeds of Σₖ hits of the group / nₖ / (classes that occur), for WA Σₖ hits / n.
    """
    sizes, right = (
        matrices.sum((-4, -1)),
        np.diagonal(matrices, axis1=-2, axis2=-1),
    )  # […, S, K], […, g, S, K]
    of_class = np.maximum(sizes, 1) * (sizes > 0).sum(-1, keepdims=True)
    denominators = of_class if metric == "ua" else sizes.sum(-1, keepdims=True)
    return 100 * (right / denominators[..., None, :, :]).sum(-1).mean(-1)


def sign_flip(parts: np.ndarray, sides: int = 2, draws: int = FLIPS) -> np.ndarray:
    """The permutation test of a sum of parts `[…, g]`, one for each group: p `[…]`.

    Were the two cells alike, each group's part would as likely have the other sign. p is the share
    of the patterns of signs, all 2ᵍ or so many drawn ones if there are more, whose sum is as far
    from zero, or with one side as high.

    >>> float(sign_flip(np.ones(6))), float(sign_flip(np.ones(6), sides=1))
    (0.03125, 0.015625)
    """
    from scipy.stats import permutation_test

    rounded = (1e9 * parts).round()  # whole numbers, so that equal sums stay equal in any order
    options: dict[str, Any] = {
        "permutation_type": "samples",
        "n_resamples": draws,
        "axis": -1,
        "rng": 0,
    }
    options |= {
        "alternative": "two-sided" if sides == 2 else "greater",
        "batch": max(1, AT_A_TIME // parts.size),
    }
    return np.asarray(permutation_test((rounded,), np.sum, **options).pvalue)


def against_quoted(
    ours: Score, quoted: float, std: float | None = None, seeds: int | None = None
) -> Comparison:
    """Ours − a number that a paper quotes, with Welch's t-test and its interval over our seeds:
    two-sided.

    `std` is the paper's deviation over its `seeds`; quoted without them, the number is taken for
    exact, which `about` says, and the test is Student's t of our seeds. It says nothing about other
    speakers. No p or ends with one seed.
    """
    from scipy.stats import t

    difference, own = ours.pooled - quoted, ours.over_seeds[1]
    about = f"two-sided, {how_many(ours.seeds, 'seeds')}"
    quoted_variance = std**2 / seeds if std is not None and seeds and seeds > 1 else None
    about += (
        ""
        if quoted_variance is not None
        else f"; quoted without {'a deviation' if std is None else 'its seeds'}"
    )
    if not own:  # one seed, or all the same
        return Comparison((difference, None, None), None, about)
    variances = own**2 / ours.seeds, quoted_variance or 0.0  # of the means
    error = np.sqrt(sum(variances))
    freedom = error**4 / (
        variances[0] ** 2 / (ours.seeds - 1) + variances[1] ** 2 / max((seeds or 0) - 1, 1)
    )
    p, half = (
        float(2 * t.sf(abs(difference) / error, freedom)),
        float(t.ppf(0.975, freedom) * error),
    )
    return Comparison((difference, difference - half, difference + half), p, about)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) step-down correction of one family of p values, in their order; None is no
    test.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = np.array([p for p in values if p is not None])
    order = np.argsort(tested, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1, tested[order] * np.arange(len(tested), 0, -1)))
    corrected = iter(stepped[np.argsort(order, kind="stable")].tolist())
    return [None if p is None else next(corrected) for p in values]


def mcnemar(truth: Any, first: Any, second: Any) -> float:
    """The p of McNemar's exact test (1947) on the utterances that just one of two cells gets right.

    p = min(1, 2 · P(X ≤ min(b, c))), X ~ Binomial(b + c, ½), with b right in `first` alone and c in
    `second` alone. What papers print: it takes utterances for independent, and so finds differences
    that are not there.

    >>> mcnemar([0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1])  # b = 3, c = 0: 2 · ½³
    0.25
    """
    from scipy.stats import binomtest

    right, other = (np.asarray(predicted) == np.asarray(truth) for predicted in (first, second))
    b, c = int(np.sum(right & ~other)), int(np.sum(~right & other))
    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def p_of_runs(first: Sequence[float], second: Sequence[float]) -> tuple[float | None, float]:
    """The p of Student's paired t-test and of Wilcoxon's signed-rank test on scores that share seed
    and fold.

    What papers print: folds share training data and seeds share test data, so the runs are not
    independent. No t-test of differences that are all the same: they have no spread to compare them
    with.

    >>> p_of_runs([2, 3, 4, 5, 7], [1, 1, 1, 1, 1])[1]  # all positive: 2 of 2⁵ sign patterns
    0.0625
    """
    from scipy.stats import ttest_1samp, wilcoxon

    differences = np.subtract(first, second).round(9)  # so that those that are equal share a rank
    t = float(ttest_1samp(differences, 0).pvalue) if np.ptp(differences) > 1e-7 else None
    return t, float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0
