"""95 % intervals over groups of predictions that are not independent, such as speakers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .measures import PERCENT, Measure

# Groups that an interval needs: of fewer, it is too wide or too uncertain to say anything.
FEWEST = 4

# A value and the ends of its 95 % interval, if it has one.
Ends = tuple[float, float | None, float | None]


def jackknife_interval(
    whole: float | np.ndarray, without: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of an estimate θ `[…]`.

    `without` `[…, g]` are its values θ₍ᵢ₎ without each of the g groups.

    θ ± t₀.₉₇₅ √((g − 1) / g · Σᵢ (θ₍ᵢ₎ − mean)²), t with g − 1 degrees of freedom: Student's t on
    the jackknife's pseudo-values (Tukey 1958), about the estimate itself. For a mean it is the
    interval of the t-test.

    >>> low, high = jackknife_interval(2.0, np.array([2.5, 2.0, 1.5]))  # the mean of 1, 2, 3
    >>> round(float(low), 3), round(float(high), 3)  # 2 ± 4.303 / √3
    (-0.484, 4.484)
    """
    # Student's t; scipy.stats has the same, and takes a second to import.
    from scipy.special import stdtrit

    freedom = without.shape[-1] - 1
    half = stdtrit(freedom, 0.975) * np.sqrt(freedom * without.var(-1))
    return whole - half, whole + half


def within(bounds: tuple[float, float], whole: float, without: np.ndarray) -> Ends:
    """The value and its `jackknife_interval`, which does not leave the `bounds`.

    None of fewer than `FEWEST` groups, nor where each says the same, such as 100 %: that is not to
    be certain.
    """
    # All the same, but for rounding.
    if len(without) < FEWEST or np.ptp(without) < 1e-9:
        return whole, None, None
    low, high = jackknife_interval(whole, without)
    return whole, max(bounds[0], float(low)), min(bounds[1], float(high))


def average(
    values: np.ndarray | Sequence[float],
    groups: Sequence[Any] | np.ndarray,
    bounds: tuple[float, float] = PERCENT,
) -> Ends:
    """The mean of n predictions' `values`, such as 100 or 0 each, with its interval over `groups`.

    `groups` `[n]` names each prediction's group.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(group)
    sums = np.bincount(group, values)
    n = sizes.sum()
    total = sums.sum()
    return within(bounds, float(total / n), (total - sums) / np.maximum(n - sizes, 1))


def pooled_interval(by_group: np.ndarray, measure: Measure, whole: float | None = None) -> Ends:
    """A measure of counts `[g, S, …]` with its interval over the g groups.

    Pooled over the groups, then the mean over the S seeds; left out is a group's part in all seeds
    at once. `whole` is the value to write in its place, where it is known. No ends where `within`
    gives none, nor where the measure is not known without one of the groups, as the recall of a
    class that occurs in one alone.
    """
    total = by_group.sum(0)
    if whole is None:
        whole = float(measure.values(total).mean())

    without = measure.values(total - by_group)  # [g, S]
    if np.isnan(without).all(1).any():
        return whole, None, None
    return within(measure.bounds, whole, np.nanmean(without, 1))
