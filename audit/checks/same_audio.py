"""The same recording in two parts, under two ids."""

from ..evidence import Evidence
from ..finding import Finding, NotChecked
from .between_parts import Kind, shared_between_parts

KIND = Kind(
    check="same audio",
    noun="recording",
    consequence="the bytes of a test utterance were trained on under another id; keep copies in "
    "one part, or leave them out",
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
                        f"train or dev under another id: {KIND.consequence}"
                    ),
                    count=declaration.repeated_audio,
                )
            )

    has_sounds = any(utterance.sound for utterance in evidence.utterances.values())
    if evidence.splits and has_sounds:
        keys_of_sound: dict[str, set[str]] = {}
        for key, utterance in evidence.utterances.items():
            if utterance.sound is not None:
                keys_of_sound.setdefault(utterance.sound, set()).add(key)

        def sound_of(id_: str) -> str | None:
            sound = evidence.about(id_).sound
            # One id in two parts is another check's.
            if sound is None or len(keys_of_sound[sound]) == 1:
                return None
            return sound

        return findings + shared_between_parts(evidence, KIND, sound_of)
    if declared:
        return findings

    if not evidence.splits:
        raise NotChecked("whether test audio was trained on under another id: give the split too")
    raise NotChecked(
        "whether test audio was trained on under another id: give the corpus folder or ser's "
        "store, whose audio is hashed, or a table with id and sha256"
    )
