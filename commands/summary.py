"""What `ser train` ends with: the scores of one cell, for the terminal."""

from ser.train.report.by_corpus import corpora_columns, corpora_rows
from ser.train.report.cell_scores import CellScores
from ser.train.report.certainty import conformal, reliability, temperatures
from ser.train.report.conditions import caveat, conditions, left_out
from ser.train.report.headings import heading_of
from ser.train.report.table import Table
from ser.train.report.text_table import tabulated
from ser.train.report.votes import divergences_from_votes, multilabel_f1, scores_of_raters
from ser.train.run_folder import column
from ser.train.scores.calibration import BINS, LEVEL
from ser.train.scores.measures import SHOWN

from .output import table


def summary_text(scores: CellScores) -> str:
    """The scores of one cell as a table, and below it under which conditions they were won."""
    pieces = [_scores_table(scores), conditions(scores.runs), _intervals(scores)]
    if scores.classes:
        pieces.append(_calibration(scores))
    pieces += _votes(scores)

    reasons = [f"{count} ({reason})" for reason, count in left_out(scores.results).items()]
    if reasons:
        pieces.append(f"left out: {', '.join(reasons)}")

    corpora = corpora_rows(scores)
    if corpora:
        pieces.append(tabulated(Table("corpora", "", corpora_columns(), corpora)))

    unreal = caveat(scores.results)
    if unreal:
        pieces.append(unreal)
    return "\n".join(pieces)


def _scores_table(scores: CellScores) -> str:
    """A line for each metric and way of testing, with its spread over the seeds and the folds."""
    lines: list[tuple[str, str, str]] = []  # the heading, the metric, the test
    if scores.classes:
        lines += [(name, metric, "both") for name, metric in SHOWN.items()]
        for name in scores.classes:
            occurs = scores.score(name).folds > 0
            if occurs:
                lines.append((f"recall {name}", name, "both"))
        lines += [(f"UA, {test}", "ua", test) for test in scores.tests if test != "both"]
    lines += [(heading_of(metric), metric, "both") for metric in scores.rated]
    if scores.dimensions:
        lines += [(column("mean CCC", test), "ccc", test) for test in scores.tests]

    rows = []
    for heading, metric, test in lines:
        score = scores.score(metric, test)
        digits = _digits(scores, metric)
        over_seeds = _with_spread(score.over_seeds, digits)
        over_folds = _with_spread(score.over_folds, digits)
        rows.append([heading, over_seeds, str(score.seeds), over_folds, str(score.folds)])

    unit = "% (CCC, RMSE: not)" if scores.dimensions else "%"
    headings = [unit, "pooled over folds, over seeds", "seeds", "over folds", "folds"]
    return table(rows, headings, disable_numparse=True)


def _digits(scores: CellScores, metric: str) -> int:
    return 3 if metric in scores.of_ratings else 2


def _with_spread(values: tuple[float | None, ...], digits: int) -> str:
    """A score with its deviation, or with the low and high end of its interval; alone where these
    are None.
    """
    score, *ends = [f"{value:.{digits}f}" for value in values if value is not None]
    if len(ends) == 2:
        return f"{score} [{', '.join(ends)}]"
    return " ± ".join([score, *ends])


def _intervals(scores: CellScores) -> str:
    """The intervals of the main metrics, or why there are none."""
    over = scores.predictions.over
    intervals = []
    for metric, ends in scores.intervals.items():
        intervals.append(f"{metric} over {over}: {_with_spread(ends, _digits(scores, metric))}")
    if not intervals:
        return scores.interval_over
    return f"95 % interval of {'; '.join(intervals)} ({scores.interval_over})"


def _calibration(scores: CellScores) -> str:
    """How sure the model is, and rightly so."""
    ece, _ = reliability(scores)
    text = f"ECE {ece:.2f} ({BINS} bins)"
    if temperatures(scores):
        ece_after, _ = reliability(scores, after=True)
        text += f", with a temperature fitted on dev {ece_after:.2f}"

    sets = conformal(scores)
    if sets is not None:
        (coverage, *_), size = sets
        text += (
            f"; sets for {100 * LEVEL:.0f} % hold the true class in {coverage:.2f} %, "
            f"mean size {size:.2f} (no guarantee across speakers)"
        )
    return text


def _votes(scores: CellScores) -> list[str]:
    """How far the model is from the raters' votes, and what the raters themselves score, as far as
    there are votes.
    """
    texts = []
    divergences = divergences_from_votes(scores)
    if divergences:
        shown = [f"{name.upper()} {_with_spread(ends, 3)}" for name, ends in divergences.items()]
        texts.append(f"from the raters' votes, in nats: {', '.join(shown)}")
    f1 = multilabel_f1(scores)
    if f1 is not None:
        threshold = f"1/{len(scores.classes)}"
        texts.append(f"multi-label macro-F1 {f1:.2f} (classes of a share above {threshold})")

    raters = scores_of_raters(scores)
    if raters:
        shown = [f"{name} {100 * raters[metric]:.2f}" for name, metric in SHOWN.items()]
        texts.append(
            f"the raters' own: {', '.join(shown)} ({raters['n']:,} votes, each against the "
            f"majority of the others; {raters['left_out']:,} left out)"
        )
    return texts
