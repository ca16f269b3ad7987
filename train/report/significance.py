"""Whether cells differ: paired tests on the same utterances and on the same folds and seeds."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ser.train.scores import mcnemar, paired_t, wilcoxon

from .cells import Cell
from .markup import Block, Section
from .tables import Column, Table

ALL_PAIRS = 5  # cells; with more, each is tested against the best only


def section(ranked: Sequence[Cell]) -> Section | None:
    """The section; None for a report of one cell."""
    found = table(ranked)
    if found is None:
        return None
    told = (
        "McNemar’s exact test asks whether two cells are right on different utterances, with the predictions of the "
        "lowest seed that both have; Holm’s correction accounts for the number of these tests in the table. The t-test "
        "and Wilcoxon’s test compare the UA of the runs that share fold and seed. Folds share training data and seeds "
        "share test data, so these runs are not independent, and their p are on the small side."
    )
    blocks: list[Block] = [told, found]
    return Section("significance", "Do the cells differ?", blocks)


def table(ranked: Sequence[Cell]) -> Table | None:
    """Every pair of up to five cells; with more, the first, which has the highest UA, against each of the others."""
    if len(ranked) < 2:
        return None
    pairs = list(combinations(ranked, 2)) if len(ranked) <= ALL_PAIRS else [(ranked[0], cell) for cell in ranked[1:]]
    rows: list[list[Any]] = [[first.label, second.label, *_tests(first, second)] for first, second in pairs]
    tried = [row[4] for row in rows if row[4] is not None]
    corrected = dict(zip([i for i, row in enumerate(rows) if row[4] is not None], holm(tried), strict=True))
    rows = [[*row[:5], corrected.get(i), *row[5:]] for i, row in enumerate(rows)]
    columns = [Column("cell"), Column("against"), Column("utterances", "count"), Column("WA difference", "points")]
    columns += [Column("McNemar p", "p"), Column("with Holm", "p"), Column("pairs of runs", "count")]
    columns += [Column("UA difference", "points"), Column("t-test p", "p"), Column("Wilcoxon p", "p")]
    untested = any(row[4] is None for row in rows)
    note = "Differences in points." + (" –: the two share no utterances, or too few runs." if untested else "")
    if len(ranked) > ALL_PAIRS:
        note += f" The cell with the highest UA of {len(ranked)} against each of the others."
    return Table("significance", "Paired tests", columns, rows, note)


def _tests(first: Cell, second: Cell) -> list[Any]:
    """Utterances, WA difference, McNemar's p, pairs, UA difference, t-test's p, Wilcoxon's p."""
    if first.classes != second.classes:
        return [None] * 7
    found: list[Any] = [None] * 7
    shared = sorted(set(first.seeds) & set(second.seeds))
    if shared:
        truth, one, other = _side_by_side(first, second, shared[0])
        if len(truth):
            test = mcnemar(truth.tolist(), one.tolist(), other.tolist())
            found[:3] = [test.n, test.difference, test.p]
    scores = [
        {(run.config["seed"], run.config["fold"], run.config["cut"]): run.result["ua"] for run in cell.runs}
        for cell in (first, second)
    ]
    keys = sorted(scores[0].keys() & scores[1].keys())
    if len(keys) > 1:
        left, right = ([score[key] for key in keys] for score in scores)
        differences = np.subtract(left, right)
        # Differences that are all the same have no spread to hold them against.
        p = paired_t(left, right).p if np.ptp(differences) > 1e-9 else None
        found[3:] = [len(keys), float(differences.mean()), p, wilcoxon(left, right).p]
    return found


def _side_by_side(first: Cell, second: Cell, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and both predictions of the utterances that both cells tested with that seed."""
    tables = []
    for cell in (first, second):
        p = cell.predictions
        keep = np.array([run.config["seed"] for run in cell.runs])[p.run] == seed
        tables.append({id_: (t, k) for id_, t, k in zip(p.ids[keep], p.truth[keep], p.predicted[keep], strict=True)})
    ids = [id_ for id_ in tables[0] if id_ in tables[1]]
    truth, one = np.array([tables[0][id_] for id_ in ids], dtype=np.int64).reshape(-1, 2).T
    return truth, one, np.array([tables[1][id_][1] for id_ in ids], dtype=np.int64)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction of several p values, in their order."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
