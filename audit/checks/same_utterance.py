"""An utterance that is trained on and tested."""

from ..evidence import Evidence
from ..finding import Finding, NotChecked
from .between_parts import Kind, shared_between_parts

KIND = Kind(
    check="same utterance",
    noun="utterance",
    consequence="the model is tested on what it has seen; cut the parts anew",
)


def check_same_utterance(evidence: Evidence) -> list[Finding]:
    """An utterance in two parts of a fold, and one test part's in another's."""
    if not evidence.splits:
        for predictions in evidence.predictions:
            # ser cuts an utterance into one part, and checks it before it trains.
            if predictions.declared is not None:
                return []
        raise NotChecked(
            "whether test utterances were trained on: give the split (lists of ids per part, or a "
            "table with id and part)"
        )
    findings = shared_between_parts(evidence, KIND, evidence.key)
    return findings + _between_test_parts(evidence)


def _between_test_parts(evidence: Evidence) -> list[Finding]:
    """Utterances in two test parts of a corpus that has several, such as test1 and test2."""
    findings = []
    for split in evidence.splits:
        part_of: dict[str, str] = {}
        twice: dict[str, None] = {}
        for part, members in split.parts.items():
            if not part.startswith("test"):
                continue
            for id_ in members:
                if part_of.setdefault(evidence.key(id_), part) != part:
                    twice[id_] = None
        if twice:
            findings.append(
                Finding(
                    check=KIND.check,
                    severity="fault",
                    sentence=(
                        f"{len(twice):,} utterances stand in two test parts, such as "
                        f"{next(iter(twice))}: leave them out of one"
                    ),
                    ids=tuple(twice),
                    count=len(twice),
                )
            )
    return findings
