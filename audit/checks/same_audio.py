"""The same recording in two parts, under two ids."""

from collections import Counter

from ..evidence import Evidence
from ..finding import Finding, NotChecked
from .between_parts import Kind, shared_between_parts

KIND = Kind(
    check="same audio",
    noun="recording",
    consequence="the recording of a {part} utterance {seen} under another id; keep copies in one "
    "part, or leave them out",
)


def check_same_audio(evidence: Evidence) -> list[Finding]:
    """Equal audio bytes in two parts of a fold, under different ids."""
    declared = [found.declared for found in evidence.predictions if found.declared is not None]
    findings = []
    for declaration in declared:
        if declaration.repeated_audio:
            findings.append(
                Finding(
                    check=KIND.check,
                    severity="fault",
                    sentence=(
                        f"{declaration.repeated_audio:,} test utterances have audio that stands in "
                        f"train or dev under another id: "
                        f"{KIND.consequence_for('train', 'test')}"
                    ),
                    count=declaration.repeated_audio,
                )
            )

    if evidence.splits and evidence.sounds:
        counts = Counter(evidence.sounds.values())
        # One id in two parts is another check's.
        copies = {key: sound for key, sound in evidence.sounds.items() if counts[sound] > 1}
        return findings + shared_between_parts(evidence, KIND, copies)
    if declared:
        return findings

    if not evidence.splits:
        raise NotChecked("whether test audio was trained on under another id: give the split too")
    raise NotChecked(
        "whether test audio was trained on under another id: give the corpus folder or ser's "
        "store, whose audio is hashed, or a table with id and sha256"
    )
