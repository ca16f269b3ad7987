"""What raters themselves score, and how far a model's probabilities are from their votes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .classes import metrics
from .measures import SHOWN


def rater_scores(matrix: np.ndarray, left_out: int) -> dict[str, Any] | None:
    """The scores of the raters' votes C `[K, K]`, see `votes.rater_votes`, and n.

    `left_out` is how many votes C does not count. None without votes.
    """
    n = int(matrix.sum())
    if n == 0:
        return None

    values = metrics(matrix)
    result: dict[str, Any] = {name: float(values[name]) for name in SHOWN.values()}
    result["n"] = n
    result["left_out"] = left_out
    result["confusion"] = matrix.tolist()
    return result


def mean_by_size(values: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean of several runs' values, each weighed by how many utterances it is of."""
    return float(np.average(values, weights=sizes))


def percent_behind(ballots: np.ndarray, true_class: int) -> float:
    """The share of the raters that stand behind the label, in percent.

    `ballots` `[raters, K]` are each rater's votes, which add up to at most 1: a rater who gave
    several categories counts in parts, one for no class of the policy counts against the label.
    """
    return 100 * ballots[:, true_class].sum() / len(ballots)


def divergences(votes: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """How far probabilities q `[n, K]` are from the raters' shares p `[n, K]`, `[n]` each, in nats.

    kl  Σ_k p_k log(p_k / q_k)
    js  half of KL(p ‖ m) and half of KL(q ‖ m) with m = (p + q) / 2: from 0 to log 2

    >>> by_name = divergences(np.eye(2)[:1], np.array([[0.5, 0.5]]))
    >>> {name: float(values[0].round(3)) for name, values in by_name.items()}
    {'kl': 0.693, 'js': 0.216}
    """
    from scipy.special import rel_entr

    tiny = np.finfo(np.float32).tiny
    p = np.maximum(votes, tiny, dtype=float)
    q = np.maximum(probabilities, tiny, dtype=float)
    middle = (p + q) / 2

    kl = rel_entr(p, q).sum(1)
    js = rel_entr(p, middle).sum(1) / 2 + rel_entr(q, middle).sum(1) / 2
    return {"kl": kl, "js": js}


def multilabel_macro_f1(votes: np.ndarray, probabilities: np.ndarray) -> float:
    """How well the classes that the raters name and those that a model names agree.

    A class is named where its share of the votes, or its probability, is above 1 / K: an utterance
    may have several (EMO-SUPERB, arXiv 2402.13018). Votes and probabilities are `[n, K]`. It is the
    mean of F1_k = 2 TP_k / (2 TP_k + FP_k + FN_k) over the classes that raters name somewhere, in
    [0, 1]; NaN where they name none.

    >>> votes = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    >>> multilabel_macro_f1(votes, np.array([[0.4, 0.4, 0.2], [0.1, 0.5, 0.4]])).__round__(3)
    0.889
    """
    # 1 / 3 in float32 is above 1 / 3.
    threshold = 1 / votes.shape[1] + 1e-6
    named = votes > threshold
    predicted = probabilities > threshold

    right = (named & predicted).sum(0)
    sizes = named.sum(0)
    occurring = sizes > 0
    if not occurring.any():
        return float("nan")
    f1 = 2 * right[occurring] / (sizes + predicted.sum(0))[occurring]
    return float(f1.mean())
