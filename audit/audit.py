"""An audit: gather the evidence, run every check, give the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .evidence import Evidence
from .finding import Finding, NotChecked
from .reading.claims import parse_claim
from .reading.columns import parse_columns
from .reading.gather import gather
from .registry import CHECKS

Verdict = Literal["sound", "fault", "unclear"]

# Without these, a result may be of what the model has seen: nothing else makes it sound.
NEEDED = ("same utterance", "same speaker")


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    evidence: Evidence
    findings: list[Finding]
    """Faults first, then notes, each in the order of the checks."""
    not_checked: dict[str, str]
    """By the check's name, what could not be checked and which file would allow it."""

    @property
    def verdict(self) -> Verdict:
        """`fault` with a fault, `unclear` where what decides could not be checked, else `sound`."""
        if self.faults:
            return "fault"
        if any(check in self.not_checked for check in NEEDED):
            return "unclear"
        return "sound"

    @property
    def faults(self) -> list[Finding]:
        """The findings that make the result another than it says."""
        return [finding for finding in self.findings if finding.severity == "fault"]

    @property
    def notes(self) -> list[Finding]:
        """The findings that are for the reader to weigh."""
        return [finding for finding in self.findings if finding.severity == "note"]


def audit(paths: Sequence[Path], columns: str = "", claims: Sequence[str] = ()) -> Audit:
    """Audit what these paths hold.

    `columns` says which heading holds what, such as "truth=y_true,id=file"; `claims` are scores
    that somebody claims, such as "ua=76.4,wa=75.2". Raises `WrongUse` for a path that holds nothing
    to audit, and for what cannot be read.
    """
    parsed = [parse_claim(claim) for claim in claims]
    evidence = gather(paths, parse_columns(columns), parsed)

    findings: list[Finding] = []
    not_checked: dict[str, str] = {}
    for name in CHECKS:
        try:
            findings += CHECKS[name](evidence)
        except NotChecked as reason:
            not_checked[name] = str(reason)

    findings.sort(key=lambda finding: finding.severity != "fault")
    return Audit(evidence, findings, not_checked)
