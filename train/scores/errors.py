"""Where predictions are wrong: shares of groups, and the utterances that are hardest."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .classes import confusions, metrics

if TYPE_CHECKING:
    import pandas


def wrong_percent(right: Any) -> Any:
    """The share of wrong predictions in percent, by the share of right ones in [0, 1]."""
    return 100 * (1 - right)


def ua_of_names(truth: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> float:
    """UA in percent of predictions `[n]` by the classes' names, all seeds counted together.

    >>> ua_of_names(["ang", "ang", "sad"], ["ang", "sad", "sad"], ["ang", "hap", "sad"])
    75.0
    """
    number = {name: place for place, name in enumerate(classes)}
    true_numbers = np.array([number[name] for name in truth])
    predicted_numbers = np.array([number[name] for name in predicted])

    matrix = confusions(true_numbers, predicted_numbers[None], len(classes))[0]
    return 100 * float(metrics(matrix)["ua"])


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's ρ of two columns `[n]`; None where one of them does not vary."""
    from scipy.stats import spearmanr

    if len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def hardest(judged: "pandas.DataFrame", limit: int) -> "pandas.DataFrame":
    """The utterances that most runs get wrong, at most `limit`; those that all get right are none.

    `judged` has the columns `id`, `truth`, `right`, `run` and `given`, the probability of the true
    class. Of utterances that are right equally often, those whose truth is given least come first.
    In the answer `right` is the share of the runs, `run` their count, and `given` the mean.
    """
    by_utterance = judged.groupby("id").agg(
        {"truth": "first", "right": "mean", "run": "size", "given": "mean"}
    )
    ever_wrong = by_utterance.query("right < 1").reset_index()
    return ever_wrong.sort_values(["right", "given", "id"])[:limit]
