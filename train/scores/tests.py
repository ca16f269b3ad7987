"""Tests of whether two cells differ, or a cell and a quoted number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .groups import confusions_by_group, count_of_groups
from .intervals import Ends, jackknife_interval
from .measures import measure_of
from .pooling import Score

# Groups that a test needs: of five, the p of the sign flips is never below 2 / 2⁵ = 0.06.
TO_TEST = 6
# Patterns of signs that a test draws where there are more.
FLIPS = 9_999
# Signs in memory at once.
AT_A_TIME = 10**6


@dataclass(frozen=True)
class ClassPredictions:
    """What the runs of one cell predicted: columns `[n]`, an utterance once per seed."""

    classes: Sequence[str]
    utterances: Sequence[tuple[str, str]]
    """"corpus/id" and the true class."""
    truth: np.ndarray
    """Class numbers."""
    predicted: np.ndarray
    """Class numbers."""
    seeds: np.ndarray
    groupings: Mapping[str, Sequence[Any]]
    """The group of each prediction by what groups can be, the default first; see `groupings`."""


@dataclass(frozen=True)
class Comparison:
    """Two cells, or a cell and a quoted number."""

    difference: Ends
    """First − second, in points."""
    p: float | None
    """Of the null hypothesis that the two do not differ."""
    about: str
    """Which test, over what."""


def compare_predictions(
    first: ClassPredictions, second: ClassPredictions, metric: str = "ua", claimed: int = 0
) -> Comparison | None:
    """The difference of two cells' pooled UA or WA in points, with all their seeds.

    On the utterances that both tested. Its interval is `jackknife_interval` and its test
    `sign_flip`, over speakers, or over dialogues where there are too few speakers; neither of fewer
    than `TO_TEST` groups. `claimed`: 1 tests one-sided whether the first is better, −1 whether the
    second is. None if the cells share no utterance or have other classes.
    """
    if first.classes != second.classes or set(first.utterances).isdisjoint(second.utterances):
        return None

    over, group_of = _groups_in_common(first, second)
    count = len(set(group_of.values()))
    counted = count_of_groups(count, over)

    first_counts = _counts_of(first, group_of)
    second_counts = _counts_of(second, group_of)
    parts = contributions(first_counts, metric) - contributions(second_counts, metric)
    difference = float(parts.sum().round(9)) + 0.0  # no −0.00 of rounding
    if count < TO_TEST:
        return Comparison((difference, None, None), None, f"no test: {counted}")

    values = measure_of(metric, first.classes, ()).values
    first_without = np.nanmean(values(first_counts.sum(0) - first_counts), 1)
    second_without = np.nanmean(values(second_counts.sum(0) - second_counts), 1)
    low, high = jackknife_interval(parts.sum(), first_without - second_without)

    if claimed:
        p = float(sign_flip(parts * claimed, sides=1))
        test = f"one-sided, {counted}"
    else:
        p = float(sign_flip(parts, sides=2))
        test = f"two-sided, {counted}"
    return Comparison((difference, float(low), float(high)), p, test)


def _groups_in_common(
    first: ClassPredictions, second: ClassPredictions
) -> tuple[str, dict[tuple[str, str], Any]]:
    """What the groups are, and the group of each utterance that both tested.

    The first of the groupings with enough groups for a test, or else the last.
    """
    tested_by_second = set(second.utterances)
    for over, groups in first.groupings.items():
        group_of = {}
        for utterance, group in zip(first.utterances, groups, strict=True):
            if utterance in tested_by_second:
                group_of[utterance] = group
        if len(set(group_of.values())) >= TO_TEST:
            return over, group_of
    return over, group_of


def _counts_of(tested: ClassPredictions, group_of: Mapping[tuple[str, str], Any]) -> np.ndarray:
    """C `[g, S, K, K]` of the utterances that have a group."""
    groups = [group_of.get(utterance) for utterance in tested.utterances]
    return confusions_by_group(
        groups, tested.seeds, tested.truth, tested.predicted, len(tested.classes)
    )


def contributions(matrices: np.ndarray, metric: str) -> np.ndarray:
    """Each group's part in the UA or WA of C `[…, g, S, K, K]`, in percent, `[…, g]`.

    The parts add up to the score. A part is the mean over the seeds of
    Σₖ hits of the group / nₖ / (classes that occur), for WA Σₖ hits / n.
    """
    right = np.diagonal(matrices, axis1=-2, axis2=-1)  # […, g, S, K]
    sizes = matrices.sum((-4, -1))  # […, S, K]

    if metric == "ua":
        classes_that_occur = (sizes > 0).sum(-1, keepdims=True)
        denominators = np.maximum(sizes, 1) * classes_that_occur
    else:
        denominators = sizes.sum(-1, keepdims=True)

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

    # Whole numbers, so that equal sums stay equal in any order.
    rounded = (1e9 * parts).round()
    tested = permutation_test(
        (rounded,),
        np.sum,
        permutation_type="samples",
        alternative="two-sided" if sides == 2 else "greater",
        n_resamples=draws,
        batch=max(1, AT_A_TIME // parts.size),
        axis=-1,
        rng=0,
    )
    return np.asarray(tested.pvalue)


def against_quoted(
    ours: Score, quoted: float, std: float | None = None, seeds: int | None = None
) -> Comparison:
    """Ours − a number that a paper quotes, by Welch's t-test over our seeds: two-sided.

    `std` is the paper's deviation over its `seeds`; quoted without them, the number is taken for
    exact, which `about` says, and the test is Student's t of our seeds. It says nothing about other
    speakers. No p or ends with one seed.
    """
    from scipy.stats import t

    difference = ours.pooled - quoted
    deviation = ours.over_seeds[1]

    test = f"two-sided, {count_of_groups(ours.seeds, 'seeds')}"
    quoted_variance = 0.0  # of the paper's mean
    if std is None:
        test += "; quoted without a deviation"
    elif seeds is None or seeds <= 1:
        test += "; quoted without its seeds"
    else:
        quoted_variance = std**2 / seeds

    # One seed, or all the same.
    if not deviation:
        return Comparison((difference, None, None), None, test)

    our_variance = deviation**2 / ours.seeds  # of our mean
    error = np.sqrt(our_variance + quoted_variance)
    # Welch–Satterthwaite.
    freedom = error**4 / (
        our_variance**2 / (ours.seeds - 1) + quoted_variance**2 / max((seeds or 0) - 1, 1)
    )
    p = float(2 * t.sf(abs(difference) / error, freedom))
    half = float(t.ppf(0.975, freedom) * error)
    return Comparison((difference, difference - half, difference + half), p, test)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) step-down correction of one family of p values, in their order.

    None is no test.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = np.array([p for p in values if p is not None])
    order = np.argsort(tested, kind="stable")
    factors = np.arange(len(tested), 0, -1)
    stepped = np.maximum.accumulate(np.minimum(1, tested[order] * factors))

    in_their_order = stepped[np.argsort(order, kind="stable")]
    corrected: Iterator[float] = iter(in_their_order.tolist())
    return [None if p is None else next(corrected) for p in values]


def mcnemar(truth: Any, first: Any, second: Any) -> float:
    """The p of McNemar's exact test (1947) on the utterances that one of two cells gets right.

    p = min(1, 2 · P(X ≤ min(b, c))), X ~ Binomial(b + c, ½), with b right in `first` alone and c in
    `second` alone. The three are columns `[n]` of classes. What papers print: it takes utterances
    for independent, and so finds differences that are not there.

    >>> mcnemar([0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1])  # b = 3, c = 0: 2 · ½³
    0.25
    """
    from scipy.stats import binomtest

    first_is_right = np.asarray(first) == np.asarray(truth)
    second_is_right = np.asarray(second) == np.asarray(truth)
    b = int(np.sum(first_is_right & ~second_is_right))
    c = int(np.sum(~first_is_right & second_is_right))
    if b + c == 0:
        return 1.0
    return float(binomtest(b, b + c, 0.5).pvalue)


def p_of_runs(first: Sequence[float], second: Sequence[float]) -> tuple[float | None, float]:
    """The p of Student's paired t-test and of Wilcoxon's signed-rank test on runs' scores.

    The scores of a pair share seed and fold. What papers print: folds share training data and seeds
    share test data, so the runs are not independent. No t-test of differences that are all the
    same: they have no spread to compare them with.

    >>> p_of_runs([2, 3, 4, 5, 7], [1, 1, 1, 1, 1])[1]  # all positive: 2 of 2⁵ sign patterns
    0.0625
    """
    from scipy.stats import ttest_1samp, wilcoxon

    # Rounded, so that those that are equal share a rank.
    differences = np.subtract(first, second).round(9)

    t_test = None
    if np.ptp(differences) > 1e-7:
        t_test = float(ttest_1samp(differences, 0).pvalue)
    signed_ranks = 1.0
    if np.any(differences):
        signed_ranks = float(wilcoxon(differences).pvalue)
    return t_test, signed_ranks
