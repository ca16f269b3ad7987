"""By how much each dimension of a feature differs between groups, over speakers.

A linear mixed model for each dimension: y = mean + group + speaker + rest, with a fixed effect for
each group but the reference and a random intercept for each speaker, by restricted maximum
likelihood (what lme4 writes `y ~ group + (1 | speaker)`). That is a function of var(speaker) /
var(rest) alone and is searched over all of it: a general optimiser, as statsmodels' `MixedLM` has,
stops elsewhere where speakers hardly differ, and its standard errors with it.

The effect size is the difference to the reference in units of the standard deviation between
utterances of one group: d = b / sqrt(var(speaker) + var(rest)) (Westfall, Kenny and Judd, 2014,
equation 1, without random slopes). p-values are by Student's t, whose degrees of freedom are
n - speakers - groups + 1 where a group occurs beside the reference within speakers, and
speakers - groups where it does not: then only whole speakers differ.

The standard deviation is an estimate too, of few speakers a rough one, by which a large d varies
more than b does. So the intervals are generalised confidence intervals (Weerahandi, 1993): the
quantiles of (b - z × error × sqrt(f / chi2_f)) / deviation*, where z is standard normal, and the
variance deviation*² is the sum of the two mean squares that it is made of, between and within
speakers, each × its degrees of freedom / its chi2; the error has the chi2 of the mean square that
it comes from. They leave out 0 where p is below 0.05. (An interval of b alone, divided by the
deviation, held a d of 2 in 37 to 65 % of simulations with 12 speakers.)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

# Of the intervals.
COVERAGE = 0.95
# Of the quantiles of a chi2 that stand for its distribution.
LEVELS = (np.arange(64) + 0.5) / 64
# Where the ratio of var(speaker) to var(rest) is looked for first.
RATIOS = np.logspace(-6, 6, 49)


@dataclass(frozen=True)
class Effect:
    """How a group differs from the reference in one dimension."""

    dimension: str
    group: str
    d: float
    """The effect size; NaN where the dimension does not vary."""
    low: float
    high: float
    p: float
    p_holm: float = float("nan")
    """Adjusted by Holm's method over all effects of the table."""


@dataclass(frozen=True)
class Design:
    """Which utterance is of which group and which speaker."""

    groups: tuple[str, ...]
    """The first is the reference."""
    group_of: np.ndarray
    """`[n]`, the place in `groups`."""
    speaker_of: np.ndarray
    """`[n]`, from 0."""

    @property
    def fixed(self) -> np.ndarray:
        """The fixed effects `[n, groups]`: a one, and whether it is of each group but the first."""
        columns = [np.ones(len(self.group_of))]
        for place in range(1, len(self.groups)):
            columns.append((self.group_of == place).astype(float))
        return np.stack(columns, 1)

    def is_within_speakers(self, place: int) -> bool:
        """Whether a speaker has utterances of that group and of the reference."""
        of_group = set(self.speaker_of[self.group_of == place])
        of_reference = set(self.speaker_of[self.group_of == 0])
        return bool(of_group & of_reference)

    def degrees_of_freedom(self, place: int) -> int:
        """Of the difference between a group and the reference."""
        speakers = len(np.unique(self.speaker_of))
        if self.is_within_speakers(place):
            return len(self.group_of) - speakers - len(self.groups) + 1
        return speakers - len(self.groups)


@dataclass(frozen=True)
class MixedModel:
    """What was fitted to the values of one dimension; NaN where one of them is."""

    coefficients: np.ndarray
    """Of the fixed effects `[effects]`."""
    errors: np.ndarray
    """Their standard errors `[effects]`."""
    speaker_variance: float
    rest_variance: float

    @property
    def deviation(self) -> float:
        """The standard deviation of an utterance of one group."""
        return float(np.sqrt(self.speaker_variance + self.rest_variance))


def make_design(
    groups: Sequence[str], speakers: Sequence[str], reference: str | None = None
) -> Design:
    """The design of these utterances; the reference is by default the group of most utterances."""
    names, group_of = np.unique(np.array(groups, str), return_inverse=True)
    counts = np.bincount(group_of)
    first = names[int(counts.argmax())] if reference is None else reference
    ordered = [str(first), *(str(name) for name in names if name != first)]
    places = np.array([ordered.index(name) for name in names])
    _, speaker_of = np.unique(np.array(speakers, str), return_inverse=True)
    return Design(tuple(ordered), places[group_of], speaker_of)


def all_effects(
    values: np.ndarray,
    dimensions: Sequence[str],
    design: Design,
    on_progress: Callable[[], object] | None = None,
) -> list[Effect]:
    """The effects of each group in each dimension of `values` `[n, dimensions]`.

    `on_progress` is called after each dimension.
    """
    found: list[Effect] = []
    for column, name in enumerate(dimensions):
        found += effects(values[:, column].astype(np.float64), name, design)
        if on_progress is not None:
            on_progress()
    adjusted = holm([effect.p for effect in found])
    return [
        Effect(each.dimension, each.group, each.d, each.low, each.high, each.p, p)
        for each, p in zip(found, adjusted, strict=True)
    ]


def effects(values: np.ndarray, dimension: str, design: Design) -> Iterator[Effect]:
    """The effect of each group but the reference in one dimension `[n]`."""
    spread = values.std()
    scale = spread if spread > 1e-12 * max(1.0, np.abs(values).max()) else np.nan
    scaled = (values - values.mean()) / scale
    model = fit_mixed_model(scaled, design.fixed, design.speaker_of)

    for place in range(1, len(design.groups)):
        group = design.groups[place]
        freedom = design.degrees_of_freedom(place)
        d = float(model.coefficients[place] / model.deviation)
        error = float(model.errors[place] / model.deviation)
        if freedom < 1 or not error > 0:
            nan = float("nan")
            yield Effect(dimension, group, d, nan, nan, nan)
            continue

        low, high = interval(d, error, mean_squares(model, design, place))
        p = float(2 * stats.t.sf(abs(d / error), freedom))
        yield Effect(dimension, group, d, low, high, p)


@dataclass(frozen=True)
class MeanSquares:
    """The two independent parts whose sum is the variance of an utterance of one group."""

    between: float
    """Between speakers, as a share of the sum."""
    freedom_between: int
    freedom_within: int
    is_error_between: bool
    """Whether the standard error of the difference comes from the part between speakers."""


def mean_squares(model: MixedModel, design: Design, place: int) -> MeanSquares:
    """The parts for a group against the reference.

    Of speakers with m utterances each (the harmonic mean) var(speaker) + var(rest) / m lies between
    them, and the rest of var(rest) within.
    """
    counts = np.bincount(design.speaker_of)
    m = len(counts) / (1 / counts).sum()
    between = model.speaker_variance + model.rest_variance / m
    share = between / (model.speaker_variance + model.rest_variance)

    is_within = design.is_within_speakers(place)
    differences = len(design.groups) - 1
    freedom_between = len(counts) - 1
    freedom_within = len(design.group_of) - len(counts)
    if is_within:
        freedom_within -= differences
    else:
        freedom_between -= differences
    return MeanSquares(share, max(1, freedom_between), max(1, freedom_within), not is_within)


def interval(d: float, error: float, parts: MeanSquares) -> tuple[float, float]:
    """The ends of the generalised confidence interval of an effect size.

    `error` is the standard error of the difference in units of the standard deviation.
    """
    # χ² / f of each part, in every pair of their quantiles.
    ratios = []
    for freedom in (parts.freedom_between, parts.freedom_within):
        ratios.append(special.chdtri(freedom, 1 - LEVELS) / freedom)
    of_between, of_within = np.meshgrid(*ratios)

    deviations = np.sqrt(parts.between / of_between + (1 - parts.between) / of_within)
    errors = error / np.sqrt(of_between if parts.is_error_between else of_within)

    ends = []
    for level in ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2):

        def excess(x: float, level: float = level) -> float:
            """By how much the probability of a value below x is above the level."""
            return float(special.ndtr((x * deviations - d) / errors).mean() - level)

        # What it is with each of the pairs alone.
        alone = (d + special.ndtri(level) * errors) / deviations
        margin = 1e-9 * error
        end = optimize.brentq(excess, alone.min() - margin, alone.max() + margin)
        ends.append(float(end))
    return ends[0], ends[1]


def fit_mixed_model(values: np.ndarray, fixed: np.ndarray, speaker_of: np.ndarray) -> MixedModel:
    """The model of values `[n]` by the fixed effects `[n, effects]` and a random intercept."""
    if not np.isfinite(values).all():
        unknown = np.full(fixed.shape[1], np.nan)
        return MixedModel(unknown, unknown, float("nan"), float("nan"))
    sums = _Sums.of(values, fixed, speaker_of)
    # The criterion may have two minima, one of them at its bound, where speakers do not differ.
    ratios = np.concatenate([[0.0], RATIOS])
    criteria = [_fit_at(ratio, sums)[0] for ratio in ratios]
    best = int(np.argmin(criteria))
    ratio = float(ratios[best])
    around = (ratios[max(0, best - 1)], ratios[min(len(RATIOS), best + 1)])
    found = optimize.minimize_scalar(
        lambda x: _fit_at(x, sums)[0], bounds=around, method="bounded", options={"xatol": 1e-10}
    )
    if found.fun < criteria[best]:
        ratio = float(found.x)

    _, coefficients, covariance, rest_variance = _fit_at(ratio, sums)
    errors = np.sqrt(rest_variance * np.diag(covariance))
    return MixedModel(coefficients, errors, ratio * rest_variance, rest_variance)


@dataclass(frozen=True)
class _Sums:
    """All that the likelihood needs of the values and the fixed effects."""

    n: int
    counts: np.ndarray
    """Utterances of each speaker `[speakers]`."""
    fixed: np.ndarray
    """Sums of the fixed effects over each speaker `[speakers, effects]`."""
    values: np.ndarray
    """Sums of the values over each speaker `[speakers]`."""
    products: tuple[np.ndarray, np.ndarray, float]
    """Of the fixed effects with themselves and with the values, and of the values."""

    @classmethod
    def of(cls, values: np.ndarray, fixed: np.ndarray, speaker_of: np.ndarray) -> "_Sums":
        counts = np.bincount(speaker_of)
        by_speaker = np.zeros((len(counts), fixed.shape[1]))
        np.add.at(by_speaker, speaker_of, fixed)
        products = (fixed.T @ fixed, fixed.T @ values, float(values @ values))
        return cls(len(values), counts, by_speaker, np.bincount(speaker_of, values), products)


def _fit_at(ratio: float, sums: _Sums) -> tuple[float, np.ndarray, np.ndarray, float]:
    """The model where var(speaker) is `ratio` times var(rest).

    Returns -2 log of the restricted likelihood but for a constant, the coefficients, their
    covariance in units of var(rest), and var(rest).
    """
    # The inverse of I + ratio J for a speaker of n utterances is I - weight J.
    weights = ratio / (1 + ratio * sums.counts)
    of_fixed, of_both, of_values = sums.products
    precision = of_fixed - (sums.fixed.T * weights) @ sums.fixed
    covariance = np.linalg.inv(precision)
    right = of_both - sums.fixed.T @ (weights * sums.values)
    coefficients = covariance @ right

    squares = of_values - float(weights @ sums.values**2) - float(right @ coefficients)
    freedom = sums.n - len(right)
    rest_variance = max(squares, np.finfo(float).tiny) / max(1, freedom)
    _, determinant = np.linalg.slogdet(precision)
    criterion = freedom * np.log(rest_variance) + determinant
    criterion += np.log1p(ratio * sums.counts).sum()
    return float(criterion), coefficients, covariance, rest_variance


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's method (1979); those that are NaN stay so and do not count."""
    p = np.array(p_values, float)
    known = np.flatnonzero(np.isfinite(p))
    adjusted = np.full(len(p), np.nan)
    largest = 0.0
    for rank, place in enumerate(known[np.argsort(p[known], kind="stable")]):
        largest = max(largest, min(1.0, (len(known) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted.tolist()
