"""By how much each dimension of a feature differs between groups, over speakers.

A linear mixed model for each dimension: y = mean + group + speaker + rest, with a fixed effect for
each group but the reference and a random intercept for each speaker, by restricted maximum
likelihood (statsmodels' `MixedLM`; what lme4 writes `y ~ group + (1 | speaker)`).

The effect size is the difference to the reference in units of the standard deviation between
utterances of one group: d = b / sqrt(var(speaker) + var(rest)) (Westfall, Kenny and Judd, 2014,
equation 1, without random slopes). Intervals and p-values are by Student's t, whose degrees of
freedom are n - speakers - groups + 1 where a group occurs beside the reference within speakers, and
speakers - groups where it does not: then only whole speakers differ.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Of the intervals.
COVERAGE = 0.95


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

    def degrees_of_freedom(self, place: int) -> int:
        """Of the difference between a group and the reference."""
        speakers = len(np.unique(self.speaker_of))
        beside = set(self.speaker_of[self.group_of == place]) & set(
            self.speaker_of[self.group_of == 0]
        )
        if beside:
            return len(self.group_of) - speakers - len(self.groups) + 1
        return speakers - len(self.groups)


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
    coefficients, errors, deviation = fit_mixed_model(scaled, design.fixed, design.speaker_of)

    for place in range(1, len(design.groups)):
        freedom = design.degrees_of_freedom(place)
        d = coefficients[place] / deviation
        error = errors[place] / deviation
        if freedom < 1 or not error > 0:
            nan = float("nan")
            yield Effect(dimension, design.groups[place], float(d), nan, nan, nan)
            continue
        half = float(stats.t.ppf((1 + COVERAGE) / 2, freedom)) * error
        p = float(2 * stats.t.sf(abs(d / error), freedom))
        yield Effect(dimension, design.groups[place], float(d), d - half, d + half, p)


def fit_mixed_model(
    values: np.ndarray, fixed: np.ndarray, speaker_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients and standard errors `[effects]` of `fixed` `[n, effects]`.

    And the standard deviation of an utterance, var(speaker) and var(rest) together. All NaN where a
    value `[n]` is.
    """
    if not np.isfinite(values).all():
        unknown = np.full(fixed.shape[1], np.nan)
        return unknown, unknown, float("nan")
    import statsmodels.api as sm

    with warnings.catch_warnings():
        # That a variance is at its bound, 0, where speakers do not differ.
        warnings.simplefilter("ignore")
        try:
            fitted = sm.MixedLM(values, fixed, speaker_of).fit(reml=True)
            errors = np.asarray(fitted.bse_fe)
            if np.isfinite(errors).all():
                deviation = float(np.sqrt(float(fitted.cov_re[0, 0]) + fitted.scale))
                return np.asarray(fitted.fe_params), errors, deviation
        except np.linalg.LinAlgError:
            pass
        # Where speakers do not differ at all, the model is this one.
        plain = sm.OLS(values, fixed).fit()
    return np.asarray(plain.params), np.asarray(plain.bse), float(np.sqrt(plain.scale))


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
