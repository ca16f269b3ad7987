"""The scores of a cell's runs, from those that each run keeps.

Every table, page and line takes them here, and `ser.train.scores` computes them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ser.errors import CorruptStore
from ser.train.data.utterances import DIMENSIONS
from ser.train.run_folder import Run
from ser.train.scores.classes import METRICS
from ser.train.scores.groups import (
    confusions_by_group,
    count_of_groups,
    moments_by_group,
)
from ser.train.scores.intervals import FEWEST, Ends, pooled_interval
from ser.train.scores.measures import SHOWN, Measure, measure_of, rating_metrics
from ser.train.scores.pooling import Score, pool
from ser.train.scores.tests import Comparison, compare_predictions

from .predictions import CellPredictions

NO_INTERVAL = "no interval: "  # what `interval_over` begins with where there is none


class CellScores:
    """The scores of the finished runs of one cell, which are its folds × seeds.

    Reads the result.json of each; predictions only when an interval is requested. A metric is "wa",
    "ua", "macro_f1", "weighted_f1", or the name of a class for its recall. Where valence, arousal
    and dominance are learnt it may be "ccc", their mean, "ccc valence", …, or "rmse valence", …;
    where nothing else is, there are no `classes`. Raises `WrongUse` for a run that is not finished,
    `CorruptStore` for runs of other classes.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.results = [run.result for run in runs]
        first = self.results[0]

        self.classes: list[str] = first.classes
        for run in runs:
            if run.result.classes != self.classes:
                raise CorruptStore(
                    f"{run.path}: has other classes than the runs beside it; train the run again"
                )

        self.dimensions = DIMENSIONS if first.moments is not None else ()
        self.of_ratings = rating_metrics(self.dimensions)
        self.rated = [metric for metric in self.of_ratings if metric != "ccc"]
        self.metrics = list(self.of_ratings)
        if self.classes:
            self.metrics = [*METRICS, *self.classes, *self.of_ratings]

        # The ways of testing that all runs have.
        self.tests: list[str] = []
        for test in first.tests:
            if all(test in result.tests for result in self.results):
                self.tests.append(test)
        self.predictions = CellPredictions(runs, self.classes, self.tests)

    def score(self, metric: str, test: str = "both") -> Score:
        """The metric with the model tested in that way.

        NaN for the recall of a class that does not occur.
        """
        measure = self._measure(metric)
        counts = np.array([getattr(result.tests[test], measure.counts) for result in self.results])
        seeds = np.array([result.seed for result in self.results])
        folds = np.array([result.fold for result in self.results])
        return pool(counts, seeds, folds, measure)

    def confusion(self, test: str = "both") -> np.ndarray:
        """C `[K, K]`, the sum over the runs."""
        matrices: list[Any] = [result.tests[test].confusion for result in self.results]
        return np.sum(matrices, 0)

    @property
    def n(self) -> int:
        """Predictions, of all folds and seeds."""
        return sum(result.n for result in self.results)

    def with_interval(self, metric: str, test: str = "both", corpus: str | None = None) -> Ends:
        """The pooled score and the ends of its interval over the groups; units as of `Score`.

        See `jackknife_interval`. Left out is a group's part in all seeds at once. No ends where
        `within` gives none, nor for the recall of a class that does not occur in two of them. With
        a `corpus`, one of several, of its utterances alone.
        """
        groups = self.predictions.group
        whole = None
        if corpus is None:
            whole = self.score(metric, test).pooled
        else:
            groups = groups.where(self.predictions.table.id.str.startswith(f"{corpus}/"))

        measure = self._measure(metric)
        seeds = self.predictions.table.seed.to_numpy()
        if measure.counts == "moments":
            truth, predicted = self.predictions.ratings(test)
            by_group = moments_by_group(groups, seeds, truth, predicted)
        else:
            truth = self.predictions.truth
            predicted = self.predictions.predicted(test)
            by_group = confusions_by_group(groups, seeds, truth, predicted, len(self.classes))
        return pooled_interval(by_group, measure, whole)

    def _measure(self, metric: str) -> Measure:
        return measure_of(metric, self.classes, self.dimensions)

    @property
    def interval_over(self) -> str:
        """What the intervals are over and of how many, or why there is none."""
        groups = self.predictions.group.nunique()
        counted = count_of_groups(groups, self.predictions.over)
        return counted if groups >= FEWEST else NO_INTERVAL + counted

    @property
    def intervals(self) -> dict[str, Ends]:
        """The main metrics with their intervals, as far as they have any."""
        intervals: dict[str, Ends] = {}
        for metric in (*SHOWN.values(), *self.rated):
            if metric in self.metrics:
                value, low, high = self.with_interval(metric)
                if low is not None and high is not None:
                    intervals[metric] = (value, low, high)
        return intervals


def compare_cells(
    first: CellScores,
    second: CellScores,
    metric: str = "ua",
    claimed: int = 0,
    tests: Sequence[str] = ("both", "both"),
) -> Comparison | None:
    """As `compare_predictions`; `tests` are the ways in which each model is tested."""
    if first.classes != second.classes:
        return None
    return compare_predictions(
        first.predictions.for_tests(tests[0]),
        second.predictions.for_tests(tests[1]),
        metric,
        claimed,
    )
