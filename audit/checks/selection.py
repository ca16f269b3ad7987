"""Epochs that were chosen by what they score on the test part, or by a part of the dev part."""

import math
from collections.abc import Mapping

from ..evidence import Evidence, History, Predictions
from ..finding import Finding, NotChecked
from ..reading.parts import part_in_name
from ..scores import agrees, predictions_by_epoch, score
from .claims import claims_of_systems

CHECK = "selection"

# Words of a heading whose smallest value is the best.
LOWER_IS_BETTER = ("loss", "error", "eer", "wer", "rmse", "mse", "mae")

# Words of a heading that hold no score.
NO_SCORE = ("lr", "learning", "rate", "time", "second", "step")


def check_selection(evidence: Evidence) -> list[Finding]:
    """What decided which epoch is reported."""
    findings = []
    checked = False
    for predictions in evidence.predictions:
        if predictions.declared is not None:
            checked = True
            if predictions.declared.select == "best-test":
                findings.append(
                    Finding(
                        CHECK,
                        "fault",
                        f"{predictions.source}: --select best-test keeps the epoch that scores "
                        "best on the test part: its score is an upper bound; train with --select "
                        "val",
                        (),
                        1,
                    )
                )
        if predictions.epochs is not None and len(set(predictions.epochs)) > 1:
            checked = True
            findings += _epochs_of_predictions(evidence, predictions)
    for history in evidence.histories:
        checked = True
        findings += _of_history(evidence, history)

    if not checked:
        raise NotChecked(
            "which epoch is reported, and what chose it: give the history of the training (a table "
            "with epoch, dev and test scores, and a column `kept`)"
        )
    return findings


def _epochs_of_predictions(evidence: Evidence, predictions: Predictions) -> list[Finding]:
    """A claim that is the best test score of several epochs, whose predictions are all here."""
    by_epoch = {}
    for epoch, of_epoch in predictions_by_epoch(predictions).items():
        by_epoch[epoch] = score(of_epoch).pooled

    findings = []
    for claim, claimed in claims_of_systems(evidence):
        if claimed is not predictions:
            continue
        for metric, (value, rounding) in claim.scores.items():
            of_metric = {epoch: scores[metric] for epoch, scores in by_epoch.items()}
            best = max(of_metric, key=of_metric.__getitem__)
            if agrees(value, of_metric[best], rounding):
                findings.append(
                    Finding(
                        CHECK,
                        "fault",
                        f"{predictions.source}: {claim.text} is epoch {best}, the best of "
                        f"{len(by_epoch)} on the test part: choose the epoch on dev",
                        (),
                        1,
                    )
                )
    return findings


def _of_history(evidence: Evidence, history: History) -> list[Finding]:
    if history.utterances:
        return _by_one_utterance(history)

    columns = {name: history.columns[name] for name in history.columns if _is_score(name)}
    of_test = {name: values for name, values in columns.items() if _is_of(name, "test")}
    of_dev = {name: values for name, values in columns.items() if _is_of(name, "dev")}
    # Where toolkits say "eval", dev is meant if test stands beside it, or nothing does.
    of_eval = {name: values for name, values in columns.items() if "eval" in name.casefold()}
    if of_dev and not of_test:
        of_test = of_eval
    else:
        of_dev |= of_eval
    kept = history.kept or _claimed_epoch(evidence, history, of_test)
    if kept is None:
        return []

    best_on_dev = _best_epochs(history, of_dev)
    best_on_test = _best_epochs(history, of_test)
    if kept in best_on_dev.values():
        return []
    for name, epoch in best_on_test.items():
        if epoch == kept:
            on_dev = ""
            if best_on_dev:
                dev_name, dev_epoch = next(iter(best_on_dev.items()))
                on_dev = f", and {dev_name} is best in epoch {dev_epoch}"
            return [
                Finding(
                    CHECK,
                    "fault",
                    f"{history.source}: epoch {kept} is reported, the best by {name}{on_dev}: the "
                    "test part chose it, so its score is an upper bound; choose the epoch on dev",
                    (),
                    1,
                )
            ]
    if best_on_dev:
        dev_name, dev_epoch = next(iter(best_on_dev.items()))
        return [
            Finding(
                CHECK,
                "note",
                f"{history.source}: epoch {kept} is reported, and {dev_name} is best in epoch "
                f"{dev_epoch}: what chose it is not in the history",
                (),
                1,
            )
        ]
    return []


def _claimed_epoch(
    evidence: Evidence, history: History, of_test: Mapping[str, list[float]]
) -> str | None:
    """The epoch whose test score somebody claims, if it is one."""
    for claim in evidence.claims:
        for metric, (value, rounding) in claim.scores.items():
            for name, values in of_test.items():
                if metric.removesuffix("_f1") not in name.casefold() and "acc" not in name:
                    continue
                percent = max(values) > 1
                for epoch, measured in zip(history.epochs, values, strict=True):
                    if agrees(value, measured / 100 if percent else measured, rounding):
                        return epoch
    return None


def _by_one_utterance(history: History) -> list[Finding]:
    """A history with a loss for each dev utterance: whether all of them chose the epoch."""
    if history.kept is None:
        return []
    findings = []
    for name, values in history.columns.items():
        if not _is_score(name):
            continue
        rows: dict[str, list[float]] = {}
        for epoch, value in zip(history.epochs, values, strict=True):
            rows.setdefault(epoch, []).append(value)

        means = {epoch: sum(of_epoch) / len(of_epoch) for epoch, of_epoch in rows.items()}
        last = {epoch: of_epoch[-1] for epoch, of_epoch in rows.items()}
        best = min if _lower_is_better(name) else max
        if best(means, key=means.__getitem__) == history.kept:
            return []
        if best(last, key=last.__getitem__) == history.kept:
            findings.append(
                Finding(
                    CHECK,
                    "fault",
                    f"{history.source}: epoch {history.kept} is the best by {name} of the last "
                    f"utterance alone; over all of them epoch {best(means, key=means.__getitem__)} "
                    "is: average over the dev part before you choose",
                    (),
                    1,
                )
            )
    return findings


def _best_epochs(history: History, columns: Mapping[str, list[float]]) -> dict[str, str]:
    """The first of the best epochs by each of these columns."""
    best = {}
    for name, values in columns.items():
        sign = -1 if _lower_is_better(name) else 1
        places = [place for place, value in enumerate(values) if not math.isnan(value)]
        if places:
            first = max(places, key=lambda place: (sign * values[place], -place))
            best[name] = history.epochs[first]
    return best


def _is_score(name: str) -> bool:
    plain = name.casefold()
    return not any(word in plain for word in NO_SCORE)


def _is_of(name: str, part: str) -> bool:
    found = part_in_name(name)
    is_eval = "eval" in name.casefold()
    return found is not None and found.startswith(part) and not is_eval


def _lower_is_better(name: str) -> bool:
    plain = name.casefold()
    return any(word in plain for word in LOWER_IS_BETTER)
