"""Claimed scores against what the predictions give."""

from ser.train.scores.classes import METRICS

from ..evidence import Claim, Evidence, Predictions
from ..finding import Finding, NotChecked
from ..scores import NAMES, Scored, agrees, score

CHECK = "claim"


def check_claims(evidence: Evidence) -> list[Finding]:
    """Every claimed score against its predictions: the n-th claim of the n-th system.

    With one system, or one claim, each is compared with each.
    """
    if not evidence.claims:
        raise NotChecked("whether claimed scores come out: give them, such as --claim ua=76.4")
    if not evidence.predictions:
        raise NotChecked("whether claimed scores come out: give the predictions too")

    systems = evidence.predictions
    claims = evidence.claims
    if len(claims) == len(systems):
        pairs = list(zip(claims, systems, strict=True))
    else:
        pairs = [(claim, systems[0]) for claim in claims]

    findings = []
    for claim, predictions in pairs:
        findings += _compare(claim, predictions)
    return findings


def _compare(claim: Claim, predictions: Predictions) -> list[Finding]:
    scored = score(predictions)
    findings = []
    for metric, (value, rounding) in claim.scores.items():
        if agrees(value, scored.pooled[metric], rounding):
            continue

        if agrees(value, scored.mean_of_folds[metric], rounding):
            findings.append(
                Finding(
                    CHECK,
                    "note",
                    f"{NAMES[metric]} {_shown(value, rounding)} is the mean of "
                    f"{len(scored.by_fold)} folds; pooled over them it is "
                    f"{_shown(scored.pooled[metric], rounding)}: say which it is",
                    (),
                    1,
                )
            )
            continue
        findings.append(_fault(metric, value, rounding, scored, predictions))
    return findings


def _fault(
    metric: str, value: float, rounding: float, scored: Scored, predictions: Predictions
) -> Finding:
    sentence = (
        f"{NAMES[metric]} {_shown(value, rounding)} is claimed, and {predictions.source} gives "
        f"{_shown(scored.pooled[metric], rounding)}"
    )
    explanation = _explanation(metric, value, rounding, scored)
    if explanation:
        sentence += f": {explanation}"
    else:
        points = 100 * (value - scored.pooled[metric])
        sentence += f" ({points:+.2f} points): no other score of these predictions is that number"
    return Finding(CHECK, "fault", sentence, (), 1)


def _explanation(metric: str, value: float, rounding: float, scored: Scored) -> str:
    """Which other score of the predictions the number is; empty if none."""
    for other in METRICS:
        if other == metric:
            continue
        for scores, how in ((scored.pooled, ""), (scored.mean_of_folds, ", the mean of folds")):
            if agrees(value, scores[other], rounding):
                if {metric, other} == {"ua", "wa"}:
                    weighted = "weighted" if other == "wa" else "unweighted"
                    return (
                        f"that is the {weighted} one, {NAMES[other]}{how}; the names are exchanged"
                    )
                return f"that is {NAMES[other]}{how}"

    for seed, scores in scored.by_seed.items():
        if len(scored.by_seed) > 1 and agrees(value, scores[metric], rounding):
            return f"that is seed {seed} alone, of {len(scored.by_seed)}"
    for fold, scores in scored.by_fold.items():
        if len(scored.by_fold) > 1 and agrees(value, scores[metric], rounding):
            return f"that is fold {fold} alone, of {len(scored.by_fold)}"
    return ""


def _shown(value: float, rounding: float) -> str:
    """A score in per cent, with as many decimals as the claim has."""
    decimals = 2
    while decimals < 6 and 100 * rounding < 0.5 * 10**-decimals - 1e-12:
        decimals += 1
    return f"{100 * value:.{decimals}f} %"
