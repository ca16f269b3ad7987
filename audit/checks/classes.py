"""What is odd about the predicted classes, and about their probabilities."""

import numpy as np

from ..evidence import Evidence, Predictions
from ..finding import Finding, NotChecked
from ..words import counted, examples

CHECK = "classes"

# The share of rows from which probabilities and classes count as joined in another order.
MANY = 0.2


def check_classes(evidence: Evidence) -> list[Finding]:
    """Classes that are never predicted, and probabilities that are of other classes."""
    if not evidence.predictions:
        raise NotChecked("which classes are predicted: give predictions")
    findings = []
    for predictions in evidence.predictions:
        findings += _never_predicted(predictions)
        findings += _never_true(predictions)
        if predictions.probabilities is not None:
            findings += _no_numbers(predictions, predictions.probabilities)
            findings += _against_probabilities(predictions, predictions.probabilities)
    return findings


def _never_predicted(predictions: Predictions) -> list[Finding]:
    never = sorted(set(predictions.truth) - set(predictions.predicted))
    if not never:
        return []
    return [
        Finding(
            CHECK,
            "note",
            f"{predictions.source}: {_are(never)} true and never predicted: the model has "
            "given up on it, and WA hides that",
            (),
            len(never),
        )
    ]


def _never_true(predictions: Predictions) -> list[Finding]:
    """Predicted classes that are never true: usually the same class under two names."""
    never = sorted(set(predictions.predicted) - set(predictions.truth))
    if not never:
        return []
    ids = []
    for id_, predicted in zip(predictions.ids, predictions.predicted, strict=True):
        if predicted in never:
            ids.append(id_)
    return [
        Finding(
            CHECK,
            "note",
            f"{predictions.source}: {_are(never)} predicted "
            f"{counted(len(ids), 'time')} and never true: is it another name of a class?",
            tuple(ids),
            len(never),
        )
    ]


def _are(names: list[str]) -> str:
    """Such as "ang is", or "ang, sad are"."""
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _no_numbers(predictions: Predictions, probabilities: np.ndarray) -> list[Finding]:
    rows = np.flatnonzero(~np.isfinite(probabilities).all(1))
    if not len(rows):
        return []
    ids = tuple(predictions.ids[row] for row in rows)
    return [
        Finding(
            CHECK,
            "fault",
            f"{predictions.source}: {len(rows):,} predictions have a probability that is no number "
            f"({examples(ids)}): the class that was taken from them means nothing",
            ids,
            len(rows),
        )
    ]


def _against_probabilities(predictions: Predictions, probabilities: np.ndarray) -> list[Finding]:
    """Predicted classes that are not the most probable ones."""
    if not set(predictions.predicted) <= set(predictions.classes):
        return []
    number = {name: place for place, name in enumerate(predictions.classes)}
    predicted = np.array([number[name] for name in predictions.predicted])
    rows = np.arange(len(predicted))
    # Ties are no disagreement.
    differs = np.nan_to_num(probabilities).max(1) > probabilities[rows, predicted] + 1e-9
    if not differs.any():
        return []

    ids = tuple(predictions.ids[row] for row in np.flatnonzero(differs))
    sentence = (
        f"{predictions.source}: {len(ids):,} of {len(predictions):,} predicted classes are not the "
        f"most probable ones ({examples(ids)})"
    )
    if differs.mean() >= MANY:
        sentence += ": the probabilities are joined to classes in another order"
    else:
        sentence += ": the class and the probabilities come from different models or files"
    return [Finding(CHECK, "fault", sentence, ids, len(ids))]
