"""The scores of one cell as JSON: what `ser train --json` prints."""

from typing import Any

from ser.train.scores.calibration import LEVEL
from ser.train.scores.measures import RANGES, SHOWN

from .by_corpus import corpora_rows
from .cell_scores import CellScores
from .certainty import conformal, reliability, temperatures
from .votes import divergences_from_votes, multilabel_f1, scores_of_raters

ENDS = ("pooled", "low", "high")


def scores_as_json(scores: CellScores) -> dict[str, Any]:
    """Pooled scores, their intervals by "ua over speakers", …, and how sure the cell's models are.

    CCC and RMSE are by dimension. Of several corpora the rows of `corpora_rows` too.
    """
    facts: dict[str, Any] = {}
    corpora = corpora_rows(scores)
    if corpora:
        facts["corpora"] = corpora

    if scores.classes:
        for metric in SHOWN.values():
            facts[metric] = scores.score(metric).pooled
    if scores.dimensions:
        for kind in RANGES:
            by_dimension = {}
            for dimension in scores.dimensions:
                by_dimension[dimension] = scores.score(f"{kind} {dimension}").pooled
            facts[kind] = by_dimension

    intervals = {}
    for metric, (_, low, high) in scores.intervals.items():
        intervals[f"{metric} over {scores.predictions.over}"] = [low, high]
    facts["intervals"] = intervals

    if scores.classes:
        facts["calibration"] = _calibration(scores)
        facts["conformal"] = _conformal(scores)
    raters = scores_of_raters(scores)
    if raters:
        facts["raters"] = raters
    for kind, ends in divergences_from_votes(scores).items():
        facts[kind] = dict(zip(ENDS, ends, strict=True))
    f1 = multilabel_f1(scores)
    if f1 is not None:
        facts["multilabel_f1"] = f1
    return facts


def _calibration(scores: CellScores) -> dict[str, Any]:
    fitted = temperatures(scores)
    ece, _ = reliability(scores)
    ece_after = None
    if fitted:
        ece_after, _ = reliability(scores, after=True)
    return {"ece": ece, "ece_tempered": ece_after, "temperatures": fitted}


def _conformal(scores: CellScores) -> dict[str, Any] | None:
    sets = conformal(scores)
    if sets is None:
        return None
    coverage, size = sets
    return {"level": 100 * LEVEL, "coverage": coverage, "size": size}
