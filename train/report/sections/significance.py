"""Do the cells differ? Our tests, and those that papers print."""

from itertools import combinations
from typing import Any

from ser.train.scores.tests import holm, mcnemar, p_of_runs

from ..cell import Cell, Cells, same_run
from ..cell_scores import compare_cells
from ..elements import Paragraph, Section, table_elements
from ..formats import COUNT, DIFFERENCE, P_VALUE, TEXT
from ..paper import claimed_better
from ..table import Column, Row, Table, columns_of, joined
from .notes import CHOSEN

MAX_FOR_ALL_PAIRS = 5  # cells; with more, each is tested against the first only
TESTED = ("ua", "wa")


def significance(cells: Cells) -> Section | None:
    """The section; None for one cell."""
    tables = table_elements(significance_table(cells), papers_tests_table(cells))
    if not tables:
        return None
    words = Paragraph(
        "Utterances of one speaker are alike, so the first table takes speakers, or dialogues "
        "where there are too few speakers, for what varies: were two cells alike, each speaker’s "
        "part in their difference would as likely have the other sign. The second has the tests "
        "that papers print. McNemar’s exact test asks whether two cells are right on different "
        "utterances, with the predictions of the lowest seed that both have; the t-test and "
        "Wilcoxon’s test compare the UA of the runs that share fold and seed. All of them take "
        "for independent what is not."
    )
    return Section("significance", "Do the cells differ?", [words, *tables])


def _pairs(cells: Cells) -> list[tuple[Cell, Cell]]:
    """The pairs of cells to test: the user's own cell, if it is named, against each of the others.

    Otherwise every pair of up to `MAX_FOR_ALL_PAIRS` cells; of more, the first cell against each of
    the others.
    """
    users_own = [cell for cell in cells if cell.ours]
    if not users_own and len(cells) <= MAX_FOR_ALL_PAIRS:
        return list(combinations(cells, 2))
    first = users_own[0] if users_own else cells[0]
    return [(first, cell) for cell in cells if cell is not first]


def significance_table(cells: Cells) -> Table:
    """Our tests, which respect that utterances of a speaker are alike; no row for one cell."""
    rows: list[Row] = []
    for first, second in _pairs(cells):
        row: Row = {"cell": first.label, "against": second.label}
        for metric in TESTED:
            row |= _tested(first, second, metric)
        rows.append(row)

    columns = columns_of(TEXT, ["cell", "against"])
    for metric in TESTED:
        name = metric.upper()
        columns += [
            Column(f"{name} difference", DIFFERENCE),
            *columns_of(P_VALUE, [f"{name} p", f"{name} Holm p"]),
            Column(f"{name} test", TEXT),
        ]
        _correct_by_holm(rows, f"{name} p", f"{name} Holm p")

    first_was_chosen = not any(cell.ours for cell in cells)
    against_first = (
        f"The cell with the highest UA of {len(cells)} against each of the others."
        if first_was_chosen and len(cells) > MAX_FOR_ALL_PAIRS
        else ""
    )
    note = (
        "Differences in points on the utterances that both tested, all seeds, with 95 % intervals "
        "(jackknife, Student’s t). p: the groups’ parts with their signs flipped; one-sided where "
        "a paper claims the better. Holm: over the column. Over dialogues it says nothing about "
        "other speakers."
    )
    return Table(
        name="significance",
        caption="Paired tests",
        columns=columns,
        rows=rows,
        note=joined(note, CHOSEN if first_was_chosen else "", against_first),
        names=2,
    )


def _tested(first: Cell, second: Cell, metric: str) -> Row:
    """The columns of one metric; that of Holm's correction is filled in when all p are there."""
    name = metric.upper()
    claim = claimed_better(first, second, metric)
    test = compare_cells(first.scores, second.scores, metric, claim)
    if test is None:
        empty: Row = dict.fromkeys([f"{name} difference", f"{name} p", f"{name} Holm p"])
        return {**empty, f"{name} test": "no utterance in common"}
    return {
        f"{name} difference": test.difference,
        f"{name} p": test.p,
        f"{name} Holm p": None,
        f"{name} test": test.about,
    }


def _correct_by_holm(rows: list[Row], heading: str, corrected_heading: str) -> None:
    """Fill in the column of Holm's correction of a column of p."""
    corrected = holm([row[heading] for row in rows])
    for row, p in zip(rows, corrected, strict=True):
        row[corrected_heading] = p


def papers_tests_table(cells: Cells) -> Table:
    """The tests that papers print, on single utterances and single runs; no row for one cell.

    McNemar's on the utterances of the lowest seed that both have, the others on runs of the same
    fold and seed. None where there is nothing to compare.
    """
    tests = ("McNemar", "t-test", "Wilcoxon")
    columns = [
        *columns_of(TEXT, ["cell", "against"]),
        Column("utterances", COUNT),
        *columns_of(P_VALUE, ["McNemar p", "McNemar Holm p"]),
        Column("pairs of runs", COUNT),
        *columns_of(P_VALUE, ["t-test p", "t-test Holm p", "Wilcoxon p", "Wilcoxon Holm p"]),
    ]
    rows: list[Row] = []
    for first, second in _pairs(cells):
        row: Row = dict.fromkeys(column.heading for column in columns)
        row |= {"cell": first.label, "against": second.label}
        if first.scores.classes == second.scores.classes:
            row |= _on_utterances(first, second)
            row |= _on_runs(first, second)
        rows.append(row)
    for test in tests:
        _correct_by_holm(rows, f"{test} p", f"{test} Holm p")

    return Table(
        name="papers-tests",
        caption="Tests that papers print, which ignore clusters",
        columns=columns,
        rows=rows,
        note=(
            "These take utterances of one speaker, and runs that share data, for independent: "
            "their p tend to be too small. Holm: over the column. –: the two share no utterances, "
            "or too few runs."
        ),
        names=2,
    )


def _on_utterances(first: Cell, second: Cell) -> Row:
    """McNemar's test, with the predictions of the lowest seed that both have."""
    shared_seeds = {*first.seeds} & {*second.seeds}
    if not shared_seeds:
        return {}
    seed = min(shared_seeds)
    predictions = []
    for cell in (first, second):
        judged = cell.judged
        predictions.append(judged[judged.seed == seed].drop_duplicates("tested"))

    both = predictions[0].merge(predictions[1], on=["tested", "truth"], suffixes=(None, "_2"))
    if both.empty:
        return {}
    p = mcnemar(both.truth, both.predicted, both.predicted_2)
    return {"utterances": len(both), "McNemar p": p}


def _on_runs(first: Cell, second: Cell) -> Row:
    """The t-test and Wilcoxon's test on the UA of the runs that share fold and seed."""
    first_scores = _ua_by_run(first)
    second_scores = _ua_by_run(second)
    shared = sorted(first_scores.keys() & second_scores.keys())
    if len(shared) < 2:
        return {}
    t, wilcoxon = p_of_runs(
        [first_scores[key] for key in shared], [second_scores[key] for key in shared]
    )
    return {"pairs of runs": len(shared), "t-test p": t, "Wilcoxon p": wilcoxon}


def _ua_by_run(cell: Cell) -> dict[tuple[Any, ...], float]:
    """UA of each run in percent, by what is the same in another cell's."""
    by_run = {}
    for run in cell.runs:
        if run.result.ua is not None:
            by_run[same_run(run)] = 100 * run.result.ua
    return by_run
