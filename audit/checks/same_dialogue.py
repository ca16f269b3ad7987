"""Dialogues that are cut through: a test utterance whose neighbours were trained on."""

from ..evidence import Evidence
from ..finding import Finding, NotChecked
from ..reading.known_ids import is_msp_podcast
from .between_parts import Kind, shared_between_parts, tested_in_several_folds

KIND = Kind(
    check="same dialogue",
    noun="dialogue",
    consequence="what was said before and after a test utterance, in the same room and mood, was "
    "trained on; keep a dialogue in one part",
)

# The parts that MSP-Podcast comes with are cut by speaker, and a podcast has several.
PODCAST = Kind(
    check="same dialogue",
    noun="podcast",
    consequence="what others said in it, in the same room, was trained on, as the corpus's own "
    "parts allow; say so beside the scores",
    severity="note",
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

    kind = PODCAST if is_msp_podcast(dialogues) else KIND

    def dialogue_of(id_: str) -> str | None:
        return dialogues.get(evidence.key(id_))

    if evidence.splits:
        return shared_between_parts(evidence, kind, dialogue_of)
    findings = []
    for predictions in in_folds:
        tested = [dialogues.get(key) for key in evidence.keys_of(predictions.ids)]
        findings += tested_in_several_folds(evidence, predictions, kind, tested)
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
