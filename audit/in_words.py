"""An audit as text for a terminal, and as JSON."""

import textwrap
from collections.abc import Iterator
from typing import Any

from ser.train.scores.groups import count_of_groups

from .audit import Audit
from .checks.difference import groupings
from .evidence import Evidence, Predictions
from .intervals import interval_of_ua
from .scores import score
from .words import counted

# Ids that the text names of a finding; JSON and the page have all.
IDS = 8


def verdict_sentence(audit: Audit) -> str:
    """The verdict in one sentence."""
    faults = len(audit.faults)
    if audit.verdict == "fault":
        subject = "1 thing makes" if faults == 1 else f"{faults} things make"
        return f"fault: {subject} this another result than it says"
    if audit.verdict == "unclear":
        return (
            "unclear: no fault in what is here, but it does not say what the model was trained on, "
            "so the result may be of what it has seen"
        )
    return "sound: nothing here makes this another result than it says"


def audit_text(audit: Audit, width: int) -> str:
    """The whole answer, in lines of at most `width` characters."""
    lines = list(_wrapped(verdict_sentence(audit), width, "", "  "))
    for heading, findings in (("Faults", audit.faults), ("Notes", audit.notes)):
        if not findings:
            continue
        lines += ["", heading]
        for finding in findings:
            lines += _wrapped(f"{finding.check}: {finding.sentence}", width, "- ", "  ")

    if audit.evidence.predictions:
        lines += ["", "Scores (pooled over folds, mean over seeds)"]
        for predictions in audit.evidence.predictions:
            lines += _wrapped(score_sentence(audit.evidence, predictions), width, "  ", "    ")
    if audit.not_checked:
        lines += ["", "Not checked"]
        for reason in audit.not_checked.values():
            lines += _wrapped(reason, width, "- ", "  ")
    lines += ["", "Read"]
    for note in audit.evidence.notes:
        lines += _wrapped(note, width, "  ", "    ")
    return "\n".join(lines)


def _wrapped(text: str, width: int, first: str, rest: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )


def score_sentence(evidence: Evidence, predictions: Predictions) -> str:
    """The scores of one system, with the interval of UA and what it is over."""
    scored = score(predictions)
    pooled = {metric: 100 * value for metric, value in scored.pooled.items()}
    kind, groups = next(iter(groupings(evidence, predictions).items()))
    low, high = interval_of_ua(predictions, groups)

    ua = f"UA {pooled['ua']:.2f} %"
    if low is not None and high is not None:
        over = count_of_groups(len(set(groups)), kind)
        ua += f" (95 % interval {low:.2f} to {high:.2f}, {over})"
    sentence = (
        f"{predictions.source}: {ua}, WA {pooled['wa']:.2f} %, "
        f"macro-F1 {pooled['macro_f1']:.2f} %, {counted(scored.n, 'utterance')}"
    )
    if predictions.folds is not None:
        sentence += f", {counted(len(scored.by_fold), 'fold')}"
    epochs = len(set(predictions.epochs or []))
    if epochs > 1:
        sentence += f", {epochs} epochs together"
    if predictions.seeds is not None:
        sentence += f", {counted(len(scored.by_seed), 'seed')}"
    return sentence


def audit_json(audit: Audit) -> dict[str, Any]:
    """The answer as JSON; `scores` are those of the first system, as fractions."""
    findings = []
    for finding in audit.findings:
        findings.append(
            {
                "check": finding.check,
                "severity": finding.severity,
                "count": finding.count,
                "ids": list(finding.ids),
                "sentence": finding.sentence,
            }
        )

    scores = None
    if audit.evidence.predictions:
        scored = score(audit.evidence.predictions[0])
        scores = {name: scored.pooled[name] for name in ("ua", "wa", "macro_f1")}
        scores["n"] = scored.n
    return {
        "verdict": audit.verdict,
        "findings": findings,
        "scores": scores,
        "not_checked": list(audit.not_checked.values()),
    }
