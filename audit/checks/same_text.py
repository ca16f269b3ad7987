"""Transcripts that are trained on and tested, word for word."""

from ..evidence import Evidence
from ..finding import Finding, NotChecked
from .between_parts import Kind, shared_between_parts

KIND = Kind(
    check="same transcript",
    noun="transcript",
    consequence="a model that reads the words can learn these by heart; say so beside its scores, "
    "or test on other scripts",
    severity="note",
)


def check_same_text(evidence: Evidence) -> list[Finding]:
    """Equal transcripts in two parts of a fold. A note: people do say the same words."""
    findings = []
    declared = False
    for predictions in evidence.predictions:
        if predictions.declared is not None:
            declared = True
            if predictions.declared.repeated_texts:
                count = predictions.declared.repeated_texts
                findings.append(
                    Finding(
                        check=KIND.check,
                        severity="note",
                        sentence=(
                            f"{count:,} of {len(predictions):,} test utterances of "
                            f"{predictions.source} have a transcript that stands in train word "
                            f"for word: {KIND.consequence}"
                        ),
                        count=count,
                    )
                )

    if evidence.splits and evidence.texts:
        return findings + shared_between_parts(evidence, KIND, evidence.texts)
    if declared:
        return findings
    raise NotChecked(
        "whether transcripts are in two parts word for word: give the split and the transcripts "
        "(the corpus folder, or a table with id and text)"
    )
