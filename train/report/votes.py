"""The raters of what a cell tested: their own scores, and how far the models are from them."""

from typing import Any

import numpy as np

from ser.train.scores.intervals import Ends, average
from ser.train.scores.raters import divergences, multilabel_macro_f1, rater_scores

from .cell_scores import CellScores


def scores_of_raters(scores: CellScores) -> dict[str, Any] | None:
    """The raters' own scores of what is tested, by this label policy; None without votes."""
    by_fold = {}
    for result in scores.results:
        by_fold[result.fold] = result.raters  # the same for all seeds
    with_votes = [raters for raters in by_fold.values() if raters]
    if not with_votes:
        return None

    matrices: list[Any] = [raters.confusion for raters in with_votes]
    left_out = sum(raters.left_out for raters in with_votes)
    return rater_scores(np.sum(matrices, 0), left_out)


def divergences_from_votes(scores: CellScores) -> dict[str, Ends]:
    """KL and JS of the raters' shares and the probabilities, the mean over all predictions.

    None unless the shares are learnt.
    """
    if any(result.kl is None for result in scores.results):
        return {}
    predictions = scores.predictions
    shares = np.stack(predictions.table.votes)
    by_prediction = divergences(shares, predictions.probabilities["both"])
    return {
        name: average(values, predictions.group, (0.0, np.inf))
        for name, values in by_prediction.items()
    }


def multilabel_f1(scores: CellScores) -> float | None:
    """The `multilabel_macro_f1` of each seed's predictions, the mean over the seeds, in percent.

    None unless the shares of the votes are learnt.
    """
    if any(result.kl is None for result in scores.results):
        return None
    predictions = scores.predictions
    shares = np.stack(predictions.table.votes)
    seeds = predictions.table.seed.to_numpy()
    of_seeds = []
    for seed in np.unique(seeds):
        rows = seeds == seed
        probabilities = predictions.probabilities["both"][rows]
        of_seeds.append(multilabel_macro_f1(shares[rows], probabilities))
    return 100 * float(np.mean(of_seeds))
