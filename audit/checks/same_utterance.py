"""An utterance that is trained on and tested."""

import itertools

from ..evidence import Evidence
from ..finding import Finding, NotChecked, Severity
from ..words import counted, examples
from .between_parts import Kind, shared_between_parts

KIND = Kind(
    check="same utterance",
    noun="utterance",
    consequence="{part} holds what {seen}; cut the parts anew",
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
    keys = set(evidence.keys.values())
    findings = shared_between_parts(evidence, KIND, dict(zip(keys, keys, strict=True)))
    return findings + _between_test_parts(evidence)


def _between_test_parts(evidence: Evidence) -> list[Finding]:
    """Utterances in two test parts of a corpus that has several, such as test1 and test2.

    Parts of the same utterances are one under two names, such as MER2023's `test` and `test1`.
    """
    findings = []
    for split in evidence.splits:
        tests = [part for part in split.parts if part.startswith("test")]
        for first, second in itertools.combinations(tests, 2):
            keys = set(evidence.keys_of(split.parts[first]))
            shared = []
            for id_ in split.parts[second]:
                if evidence.key(id_) in keys:
                    shared.append(id_)
            if shared:
                is_same = len(shared) == len(split.parts[second]) == len(keys)
                findings.append(_in_two_tests(first, second, shared, is_same))
    return findings


def _in_two_tests(first: str, second: str, shared: list[str], is_same: bool) -> Finding:
    if is_same:
        sentence = (
            f"{first} and {second} are the same {counted(len(shared), 'utterance')}: their scores "
            "are one score"
        )
    else:
        verb = "stands" if len(shared) == 1 else "stand"
        sentence = (
            f"{counted(len(shared), 'utterance')} {verb} in two test parts, {first} and {second} "
            f"({examples(shared)}): leave them out of one"
        )
    severity: Severity = "note" if is_same else "fault"
    return Finding(KIND.check, severity, sentence, tuple(shared), len(shared))
