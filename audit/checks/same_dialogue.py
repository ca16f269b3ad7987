"""Dialogues that are cut through: a test utterance whose neighbours were trained on."""

from ..evidence import Evidence
from ..finding import Finding, NotChecked
from .between_parts import Kind, shared_between_parts, tested_in_several_folds

KIND = Kind(
    check="same dialogue",
    noun="dialogue",
    consequence="what was said before and after a test utterance, in the same room and mood, was "
    "trained on; keep a dialogue in one part",
)


def check_same_dialogue(evidence: Evidence) -> list[Finding]:
    """A dialogue in two parts of a fold."""
    in_folds = []
    for predictions in evidence.predictions:
        if predictions.declared is not None:
            # ser checks it before it trains, where the protocol forbids it.
            return []
        if predictions.folds is not None:
            in_folds.append(predictions)
    if not evidence.splits and not in_folds:
        raise NotChecked("whether dialogues are cut through: give the split too")

    dialogues = _dialogues(evidence)
    if not dialogues:
        raise NotChecked(
            "whether dialogues are cut through: which utterance is of which dialogue is not known; "
            "give the corpus, or a table with id and dialogue"
        )

    def dialogue_of(id_: str) -> str | None:
        return dialogues.get(evidence.key(id_))

    if evidence.splits:
        return shared_between_parts(evidence, KIND, dialogue_of)
    findings = []
    for predictions in in_folds:
        findings += tested_in_several_folds(evidence, predictions, KIND, dialogue_of)
    return findings


def _dialogues(evidence: Evidence) -> dict[str, str]:
    """The dialogue of each utterance; nothing where every utterance is a dialogue by itself."""
    dialogues = {}
    for key, utterance in evidence.utterances.items():
        if utterance.dialogue is not None:
            dialogues[key] = utterance.dialogue
    if len(set(dialogues.values())) == len(dialogues):
        return {}
    return dialogues
