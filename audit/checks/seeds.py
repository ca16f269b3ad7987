"""Over how many trainings a score is averaged."""

from ..evidence import Evidence
from ..finding import Finding, NotChecked
from ..scores import NAMES, score

CHECK = "seeds"


def check_seeds(evidence: Evidence) -> list[Finding]:
    """How far the seeds of a system are apart, where they are further than the claim's decimals."""
    if not evidence.predictions:
        raise NotChecked("how far seeds are apart: give predictions")
    several = []
    for predictions in evidence.predictions:
        if len(set(predictions.seeds or [""])) > 1:
            several.append(predictions)
    if not several:
        raise NotChecked(
            "how far seeds are apart: there is one training; give predictions of three seeds or "
            "more, with a column `seed`"
        )

    findings = []
    for predictions in several:
        scored = score(predictions)
        values = [100 * scores["ua"] for scores in scored.by_seed.values()]
        spread = max(values) - min(values)
        if spread > 5:
            findings.append(
                Finding(
                    CHECK,
                    "note",
                    f"{predictions.source}: {NAMES['ua']} is {min(values):.2f} to "
                    f"{max(values):.2f} % over {len(values)} seeds: a difference of less than that "
                    "says little",
                    (),
                    len(values),
                )
            )
    return findings
