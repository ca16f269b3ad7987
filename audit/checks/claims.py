"""Claimed scores against what the predictions give."""

from ser.train.scores.classes import METRICS

from ..evidence import Claim, Evidence, Predictions
from ..finding import Finding, NotChecked
from ..scores import NAMES, Scored, agrees, predictions_by_epoch, score

CHECK = "claim"


def check_claims(evidence: Evidence) -> list[Finding]:
    """Every claimed score against its predictions."""
    if not evidence.claims:
        raise NotChecked("whether claimed scores come out: give them, such as --claim ua=76.4")
    if not evidence.predictions:
        raise NotChecked("whether claimed scores come out: give the predictions too")

    findings = []
    for claim, predictions in claims_of_systems(evidence):
        findings += _compare(claim, predictions)
    return findings


def claims_of_systems(evidence: Evidence) -> list[tuple[Claim, Predictions]]:
    """The n-th claim with the n-th system; all of them with the only one."""
    if len(evidence.predictions) == 1:
        return [(claim, evidence.predictions[0]) for claim in evidence.claims]
    return list(zip(evidence.claims, evidence.predictions, strict=False))


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
        epoch = _epoch_of(metric, value, rounding, predictions)
        if epoch is not None:
            findings.append(
                Finding(
                    CHECK,
                    "note",
                    f"{NAMES[metric]} {_shown(value, rounding)} is epoch {epoch} of "
                    f"{predictions.source} alone: say what chose it",
                    (),
                    1,
                )
            )
            continue
        findings.append(_fault(metric, value, rounding, scored, predictions))
    return findings


def _epoch_of(metric: str, value: float, rounding: float, predictions: Predictions) -> str | None:
    """The epoch whose score is claimed, where predictions of several are here."""
    by_epoch = predictions_by_epoch(predictions)
    for epoch, of_epoch in by_epoch.items():
        if len(by_epoch) > 1 and agrees(value, score(of_epoch).pooled[metric], rounding):
            return epoch
    return None


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
