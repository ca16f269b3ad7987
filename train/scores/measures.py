"""A metric by its name: which counts it is made of, how, and within which bounds it lies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .classes import METRICS, metrics
from .ratings import concordance

# The metrics of classes that every table shows, by their headings. Each is a field of `Scores` and
# of `RaterScores` in `train/records.py`.
SHOWN = {"UA": "ua", "WA": "wa", "macro-F1": "macro_f1"}

# One score of a run, whatever it learns: the metrics of `SHOWN`, and of ratings the mean over the
# dimensions. Their headings, and the same with the unit.
HEADINGS = {**{metric: name for name, metric in SHOWN.items()}, "ccc": "mean CCC"}
SCORED = {**{metric: f"{name} %" for name, metric in SHOWN.items()}, "ccc": "mean CCC"}

# No interval of a share leaves these bounds,
PERCENT = (0.0, 100.0)
# nor one of ratings these, RMSE in the units of the corpus's scale.
RANGES = {"ccc": (-1.0, 1.0), "rmse": (0.0, np.inf)}


@dataclass(frozen=True)
class Measure:
    """One metric of counts that add up over utterances, runs and groups."""

    counts: Literal["confusion", "moments"]
    """C `[…, K, K]` of `confusions`, or M `[…, D, 6]` of `moments`: as a result.json calls them."""
    bounds: tuple[float, float]
    values: Callable[[np.ndarray], np.ndarray]
    """The metric of such counts, `[…]`, in percent or in the units of the ratings."""


def rating_metrics(dimensions: Sequence[str]) -> list[str]:
    """The metrics of ratings: "ccc", the mean over dimensions, "ccc valence", …, "rmse valence"."""
    if not dimensions:
        return []
    metrics_of_ratings = ["ccc"]
    for kind in RANGES:
        metrics_of_ratings += [f"{kind} {dimension}" for dimension in dimensions]
    return metrics_of_ratings


def measure_of(metric: str, classes: Sequence[str], dimensions: Sequence[str]) -> Measure:
    """The measure called "wa", "ua", "macro_f1", "weighted_f1", or, for its recall, like a class.

    With `dimensions` it may be one of `rating_metrics` too.
    """
    if metric in rating_metrics(dimensions):
        return _rating_measure(metric, dimensions)
    if metric in METRICS:
        return Measure("confusion", PERCENT, lambda matrices: 100 * metrics(matrices)[metric])

    place = list(classes).index(metric)
    return Measure(
        "confusion", PERCENT, lambda matrices: 100 * metrics(matrices)["recalls"][..., place]
    )


def _rating_measure(metric: str, dimensions: Sequence[str]) -> Measure:
    kind, _, dimension = metric.partition(" ")
    if not dimension:
        return Measure("moments", RANGES[kind], lambda sums: concordance(sums)[kind].mean(-1))

    place = list(dimensions).index(dimension)
    return Measure("moments", RANGES[kind], lambda sums: concordance(sums)[kind][..., place])
