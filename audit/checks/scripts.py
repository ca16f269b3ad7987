"""Scripts of an evaluation that Python cannot read."""

from ..evidence import Evidence
from ..finding import Finding


def check_scripts(evidence: Evidence) -> list[Finding]:
    """A Python file that does not parse, so that its result cannot come from it as it is."""
    findings = []
    for script in evidence.scripts:
        if script.fault:
            findings.append(
                Finding(
                    "script",
                    "fault",
                    f"{script.source} does not parse ({script.fault}): no result can come from it "
                    "as it is; ask for the one that was run",
                    (),
                    1,
                )
            )
    return findings
