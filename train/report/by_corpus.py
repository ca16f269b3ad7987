"""The scores of each of several corpora.

A cell's own score is pooled over several corpora, where large ones weigh more; beside it stand the
score of each corpus, pooled over the folds that test it, and their plain mean, the "mean over
corpora".
"""

from collections.abc import Mapping

from ser.train.records import SplitCorpus
from ser.train.scores.intervals import FEWEST
from ser.train.scores.measures import SCORED
from ser.train.scores.pooling import plain_mean

from .cell_scores import CellScores
from .conditions import size_range
from .formats import COUNT, FINE_WITH_INTERVAL, PERCENT_WITH_INTERVAL, TEXT
from .table import Column, Row, columns_of


def corpora_columns() -> list[Column]:
    """The columns of `corpora_rows`."""
    columns = [Column("tested on", TEXT), Column("n", COUNT)]
    columns += columns_of(TEXT, ["folds", "trained on", "has no"])
    for metric, heading in SCORED.items():
        format = FINE_WITH_INTERVAL if metric == "ccc" else PERCENT_WITH_INTERVAL
        columns.append(Column(heading, format))
    return columns


def corpora_rows(scores: CellScores) -> list[Row]:
    """Each corpus that is tested, its scores and who trained, and the "mean over corpora".

    No row where there is one corpus alone.
    """
    rows: list[Row] = []
    metrics = [metric for metric in SCORED if metric in scores.metrics]
    for corpus in scores.results[0].corpora or {}:
        by_fold = {}
        for result in scores.results:
            corpora = result.corpora or {}
            if corpora[corpus].test:
                by_fold[result.fold] = corpora
        if not by_fold:
            continue

        row = _who_trained(corpus, by_fold)
        for metric in metrics:
            row[SCORED[metric]] = scores.with_interval(metric, corpus=corpus)
        rows.append(row)
    if not rows:
        return []

    means: Row = {"tested on": "mean over corpora"}
    for metric in metrics:
        values = [row[SCORED[metric]][0] for row in rows]
        means[SCORED[metric]] = (plain_mean(values), None, None)
    return [*rows, means]


def _who_trained(corpus: str, by_fold: Mapping[str, Mapping[str, SplitCorpus]]) -> Row:
    """The utterances of a corpus in the folds that test it, and the corpora that train there."""
    first_fold = next(iter(by_fold.values()))
    trained_on = []
    for other in first_fold:
        sizes = [corpora[other].train for corpora in by_fold.values()]
        if any(sizes):
            trained_on.append(f"{other} {size_range(sizes)}")

    absent = [label for label, n in first_fold[corpus].classes.items() if not n]
    return {
        "tested on": corpus,
        "n": sum(corpora[corpus].test for corpora in by_fold.values()),
        "folds": ", ".join(by_fold) if len(by_fold) < FEWEST else f"{len(by_fold)}",
        "trained on": " + ".join(trained_on),
        "has no": ", ".join(absent) or None,
    }
