"""Stacking: logistic regression on the members' probabilities, fitted on the dev part.

Wolpert, "Stacked generalization", Neural Networks 1992; scikit-learn's `StackingClassifier` of
members that are trained already (cv="prefit"), with `LogisticRegression` behind them. Its strength
C is the one with the least log-loss on speakers that it was not fitted on.

    M  members     n  utterances of the dev part     K  classes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ser.errors import WrongUse

# The strengths that are tried, the most regularised first: of equals the first counts.
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
# Groups of speakers, each left out once.
FOLDS = 5
# Updates of lbfgs at most.
MAX_UPDATES = 2000


@dataclass(frozen=True)
class Stack:
    """A fitted regression, by the J classes that the dev part has."""

    coef: np.ndarray
    """float64 [J, M K]."""
    intercept: np.ndarray
    """float64 [J]."""
    classes: np.ndarray
    """The numbers of these classes, int64 [J]."""
    strength: float
    """C, the inverse of the regularisation."""

    def probabilities(self, members: np.ndarray) -> np.ndarray:
        """Those of all K classes `[n, K]` from those of the members `[M, n, K]`.

        softmax(W x + b) of the members' probabilities x side by side; 0 for a class that the dev
        part does not have.
        """
        from scipy.special import softmax

        outputs = side_by_side(members) @ self.coef.T + self.intercept
        probabilities = np.zeros(members.shape[1:])
        probabilities[:, self.classes] = softmax(outputs, axis=1)
        return probabilities

    def tensors(self) -> dict[str, np.ndarray]:
        """What model.safetensors holds of it."""
        return {
            "stack.coef": self.coef,
            "stack.intercept": self.intercept,
            "stack.classes": self.classes,
            "stack.strength": np.array([self.strength]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> "Stack":
        """The same again, from torch tensors."""
        return cls(
            coef=tensors["stack.coef"].numpy(),
            intercept=tensors["stack.intercept"].numpy(),
            classes=tensors["stack.classes"].numpy(),
            strength=float(tensors["stack.strength"][0]),
        )


def fit_stack(
    members: np.ndarray, truth: np.ndarray, speakers: Sequence[str | None]
) -> tuple[Stack, np.ndarray]:
    """The stack of the members' probabilities `[M, n, K]`, and what it says of each utterance.

    The latter, `[n, K]`, is by a regression that was not fitted on the utterance's speaker, with
    the same C. `truth` are class numbers `[n]`. Raises `WrongUse` for a dev part of a single class
    or speaker, or of speakers that are not known.
    """
    _check_dev(truth, speakers)
    folds = _folds_of_speakers(members, speakers)
    held_out_by_strength = {}
    losses = {}
    for strength in STRENGTHS:
        held_out = np.empty(members.shape[1:])
        for fitted_on, others in folds:
            stack = _fit(members[:, fitted_on], truth[fitted_on], strength)
            held_out[others] = stack.probabilities(members[:, others])
        held_out_by_strength[strength] = held_out
        losses[strength] = _log_loss(held_out, truth)

    best = min(STRENGTHS, key=losses.__getitem__)
    return _fit(members, truth, best), held_out_by_strength[best]


def side_by_side(members: np.ndarray) -> np.ndarray:
    """`[M, n, K]` → `[n, M K]`, member after member."""
    _, n, _ = members.shape
    return members.transpose(1, 0, 2).reshape(n, -1)


def _fit(members: np.ndarray, truth: np.ndarray, strength: float) -> Stack:
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=strength, max_iter=MAX_UPDATES)
    regression.fit(side_by_side(members), truth)
    coef = regression.coef_
    intercept = regression.intercept_
    if len(coef) == 1:
        # Of two classes scikit-learn keeps the second's z: its sigmoid is the softmax of 0 and z.
        coef = np.concatenate([np.zeros_like(coef), coef])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    return Stack(coef, intercept, regression.classes_.astype(np.int64), strength)


def _folds_of_speakers(
    members: np.ndarray, speakers: Sequence[str | None]
) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold

    count = min(FOLDS, len(set(speakers)))
    return list(GroupKFold(count).split(members[0], groups=speakers))


def _log_loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    of_truth = probabilities[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean())


def _check_dev(truth: np.ndarray, speakers: Sequence[str | None]) -> None:
    if None in speakers:
        raise WrongUse(
            "--by stack: speakers of the dev part are not known, and it is fitted on some and "
            "judged on others; use --by mean"
        )
    for kind, values in (("speaker", set(speakers)), ("class", set(truth.tolist()))):
        if len(values) < 2:
            raise WrongUse(
                f"--by stack: the dev part has one {kind} alone, and two are needed; use --by mean"
            )
