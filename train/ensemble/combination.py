"""How the predictions of M members become one.

M  members     n  utterances     K  classes     D  dimensions
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ser.errors import WrongUse

from .stacking import Stack

# What `--by` takes, and what it does with the members' probabilities.
WAYS = {
    "mean": "the mean of the probabilities, or their weighted mean with --weights dev",
    "median": "the median of each class's probabilities, scaled so that they add up to 1",
    "majority": "the class that most members predict; of equals the one with the highest mean",
    "stack": "logistic regression on the probabilities, fitted on the dev part",
}


@dataclass(frozen=True)
class Combination:
    """One of `WAYS`, with what was fitted for it."""

    by: str
    weights: np.ndarray | None = None
    """[M], which add up to 1; None where all members weigh the same."""
    stack: Stack | None = None
    """Only of "stack"."""

    def probabilities(self, members: np.ndarray) -> np.ndarray:
        """Those of the ensemble `[n, K]`, float64, from those of its members `[M, n, K]`.

        majority: a member's vote v_mk is 1 for its most probable class; p = (Σ_m v_m + mean) / (M +
        1). The mean p̄ counts as one vote more, so it decides among equals and nowhere else.
        """
        members = members.astype(np.float64)
        if self.by == "stack":
            if self.stack is None:
                raise WrongUse("a stacked ensemble without its regression; make it again")
            return self.stack.probabilities(members)
        if self.by == "median":
            medians = np.median(members, axis=0)
            return medians / medians.sum(1, keepdims=True)

        means = self._mean(members)
        if self.by == "mean":
            return means
        votes = np.eye(members.shape[2])[members.argmax(2)]
        return (votes.sum(0) + means) / (len(members) + 1)

    def ratings(self, members: np.ndarray) -> np.ndarray:
        """Valence, arousal and dominance `[n, D]` from those of the members `[M, n, D]`.

        Their median by "median", otherwise their mean.
        """
        members = members.astype(np.float64)
        if self.by == "median":
            return np.asarray(np.median(members, axis=0))
        return self._mean(members)

    def _mean(self, members: np.ndarray) -> np.ndarray:
        if self.weights is None:
            return np.asarray(members.mean(0))
        return np.einsum("m,mnk->nk", self.weights, members)


def combination_of(
    by: str, weights: "list[float] | None", tensors: Mapping[str, Any] | None
) -> Combination:
    """The combination of an ensemble that was written, by its record and its tensors."""
    fitted = None if weights is None else np.array(weights)
    stack = None if tensors is None else Stack.from_tensors(tensors)
    return Combination(by, fitted, stack)
