"""Whether two systems differ, over the speakers who say what both were tested on."""

import numpy as np

from ser.train.scores.tests import ClassPredictions, compare_predictions

from ..evidence import Evidence, Predictions
from ..finding import Finding, NotChecked

CHECK = "difference"


def check_difference(evidence: Evidence) -> list[Finding]:
    """The difference in UA of the first system and each other one, with its paired test."""
    if len(evidence.predictions) < 2:
        raise NotChecked("whether the result differs from another's: give the predictions of both")

    first = evidence.predictions[0]
    findings = []
    for other in evidence.predictions[1:]:
        names = sorted({*first.truth, *first.predicted, *other.truth, *other.predicted})
        compared = compare_predictions(
            _for_tests(evidence, first, names), _for_tests(evidence, other, names)
        )
        if compared is None:
            sentence = f"{first.source} and {other.source} share no test utterance of equal truth"
        else:
            value, low, high = compared.difference
            sentence = f"{first.source} − {other.source}: {value:+.2f} points of UA"
            if low is not None and high is not None and compared.p is not None:
                sentence += f", 95 % interval {low:+.2f} to {high:+.2f}, p = {compared.p:.3g}"
            sentence += f" ({compared.about})"
        findings.append(Finding(CHECK, "note", sentence, (), 1))
    return findings


def _for_tests(evidence: Evidence, predictions: Predictions, names: list[str]) -> ClassPredictions:
    number = {name: place for place, name in enumerate(names)}
    keys = evidence.keys_of(predictions.ids)
    return ClassPredictions(
        classes=names,
        utterances=list(zip(keys, predictions.truth, strict=True)),
        truth=np.array([number[name] for name in predictions.truth]),
        predicted=np.array([number[name] for name in predictions.predicted]),
        seeds=np.array(predictions.seeds or [""] * len(keys)),
        groupings=groupings(evidence, predictions),
    )


def groupings(evidence: Evidence, predictions: Predictions) -> dict[str, list[str]]:
    """The group of each prediction, by what groups can be: speakers, dialogues, else utterances."""
    by_kind: dict[str, list[str]] = {}
    keys = evidence.keys_of(predictions.ids)
    speakers = [evidence.speakers.get(key, "") for key in keys]
    if "" not in speakers:
        by_kind["speakers"] = speakers
    dialogues = [evidence.dialogues.get(key, "") for key in keys]
    if "" not in dialogues and len(set(dialogues)) < len(set(keys)):
        by_kind["dialogues"] = dialogues
    return by_kind or {"utterances": keys}
