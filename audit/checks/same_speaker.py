"""Voices that are trained on and tested."""

from ..evidence import Declaration, Evidence, Predictions
from ..finding import Finding, NotChecked, Severity
from ..words import counted, examples
from .between_parts import Kind, shared_between_parts, tested_in_several_folds

KIND = Kind(
    check="same speaker",
    noun="speaker",
    consequence="the score says little about voices that the model has not heard; cut the parts "
    "by speaker",
)

# Protocols of ser in which test speakers are heard in training, as their documentation says.
ALLOWS_SPEAKERS = ("random-70-20-10", "official", "script-out")


def check_same_speaker(evidence: Evidence) -> list[Finding]:
    """A speaker in two parts of a fold, or tested in several."""
    findings: list[Finding] = []
    checked = False
    for predictions in evidence.predictions:
        if predictions.declared is not None:
            checked = True
            findings += _of_runs(predictions, predictions.declared)

    has_speakers = bool(evidence.speakers)
    if evidence.splits and has_speakers:
        return findings + shared_between_parts(evidence, KIND, evidence.speakers)
    if not evidence.splits and has_speakers:
        for predictions in evidence.predictions:
            if predictions.declared is None and predictions.folds is not None:
                checked = True
                speakers = list(map(evidence.speakers.get, evidence.keys_of(predictions.ids)))
                findings += tested_in_several_folds(evidence, predictions, KIND, speakers)
    if checked:
        return findings

    if not has_speakers:
        raise NotChecked(
            "whether test speakers were heard in training: who speaks is not known; give the "
            "corpus, or a table with id and speaker"
        )
    raise NotChecked("whether test speakers were heard in training: give the split too")


def _of_runs(predictions: Predictions, declared: Declaration) -> list[Finding]:
    if not declared.heard_speakers:
        return []
    name = declared.protocol.partition(":")[0]
    severity: Severity = "note" if name in ALLOWS_SPEAKERS else "fault"
    allowed = "as the protocol says" if severity == "note" else "which the protocol does not say"
    return [
        Finding(
            check=KIND.check,
            severity=severity,
            sentence=(
                f"{counted(len(declared.heard_speakers), 'test speaker')} of {predictions.source} "
                f"heard in training, {allowed} ({declared.protocol}): "
                f"{examples(declared.heard_speakers)}"
            ),
            ids=declared.heard_speakers,
            count=len(declared.heard_speakers),
        )
    ]
