"""Dialogues that are cut through: a test utterance whose neighbours were trained on."""

from ..evidence import Evidence
from ..finding import Finding, NotChecked
from ..reading.known_ids import is_msp_podcast
from .between_parts import Kind, shared_between_parts, tested_in_several_folds

KIND = Kind(
    check="same dialogue",
    noun="dialogue",
    consequence="what was said before and after a {part} utterance, in the same room and mood, "
    "{seen}; keep a dialogue in one part",
)

# The parts that MSP-Podcast comes with are cut by speaker, and a podcast has several.
PODCAST = Kind(
    check="same dialogue",
    noun="podcast",
    consequence="what others said in it, in the same room, {seen}, as the corpus's own parts "
    "allow; say so beside the scores",
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

    dialogues = evidence.dialogues
    # Where every utterance is a dialogue by itself, none is cut through.
    if len(set(dialogues.values())) == len(dialogues):
        raise NotChecked(
            "whether dialogues are cut through: which utterance is of which dialogue is not known; "
            "give the corpus, or a table with id and dialogue"
        )

    kind = PODCAST if is_msp_podcast(dialogues) else KIND
    if evidence.splits:
        return shared_between_parts(evidence, kind, dialogues)
    findings = []
    for predictions in in_folds:
        tested = [dialogues.get(key) for key in evidence.keys_of(predictions.ids)]
        findings += tested_in_several_folds(evidence, predictions, kind, tested)
    return findings
