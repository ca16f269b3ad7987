"""One score of many runs: pooled over the folds of a seed, then averaged over the seeds.

Confusion matrices, and the moments of ratings, add up over folds. Beside the pooled score stand two
spreads: the deviation over the seeds, and mean ± deviation over the folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .measures import Measure

Spread = tuple[float, float | None]  # mean, sample deviation


@dataclass(frozen=True)
class Score:
    """One metric of one cell: the score, and mean and sample deviation over seeds and over folds.

    In percent, but CCC between −1 and 1 and RMSE in the units of the corpus's scale.
    """

    pooled: float
    """The score: pooled over the folds of a seed, then the mean over the seeds."""
    over_seeds: Spread
    """Of the seeds' pooled scores."""
    seeds: int
    over_folds: Spread
    """Of each fold's mean over its seeds."""
    folds: int


def plain_mean(values: Sequence[float]) -> float:
    """The mean of several corpora's scores, where each weighs the same."""
    return float(np.mean(values))


def spread(values: np.ndarray) -> Spread:
    """Their mean, NaN of none, and sample deviation, None of a single one."""
    mean = float(values.mean()) if len(values) else np.nan
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return mean, deviation


def pool(counts: np.ndarray, seeds: np.ndarray, folds: np.ndarray, measure: Measure) -> Score:
    """The score of R runs, whose `counts` `[R, …]` are what the measure is made of.

    `seeds` and `folds` `[R]` name those of each run. Seeds and runs whose score is NaN, as the
    recall of a class that does not occur, do not count; NaN if none does.
    """
    pooled_by_seed = [counts[seeds == seed].sum(0) for seed in np.unique(seeds)]
    by_seed = measure.values(np.stack(pooled_by_seed))
    by_seed = by_seed[~np.isnan(by_seed)]

    by_run = measure.values(counts)  # [R]
    has_score = ~np.isnan(by_run)
    by_fold = []
    for fold in np.unique(folds[has_score]):
        by_fold.append(by_run[has_score & (folds == fold)].mean())

    over_seeds = spread(by_seed)
    return Score(over_seeds[0], over_seeds, len(by_seed), spread(np.array(by_fold)), len(by_fold))
