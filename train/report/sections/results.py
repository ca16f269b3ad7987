"""The scores of each cell and of each corpus, what searches chose, and the papers' numbers."""

from functools import partial
from typing import Any

from ser.train.scores.classes import chance
from ser.train.scores.measures import SHOWN

from ..by_corpus import corpora_columns, corpora_rows
from ..cell import Cell, Cells, grouped
from ..conditions import caution_of_unreal, caveat, conditions
from ..elements import (
    Element,
    Note,
    Paragraph,
    Plot,
    Section,
    TableElement,
    side_by_side,
    table_elements,
)
from ..figures import Points, dots
from ..formats import (
    COUNT,
    PERCENT_WITH_DEVIATION,
    PERCENT_WITH_INTERVAL,
    TEXT,
)
from ..paper import MAIN, Quoted, beside, beside_columns, quoted_for
from ..searches import chosen_columns, chosen_rows
from ..short_tables import (
    conditions_in_words,
    letters_of_conditions,
    papers_in_short,
    scores_table,
)
from ..table import Column, Row, Table, columns_of, joined
from .against_linear import against_linear, against_linear_table
from .notes import CHOSEN, drawn

PLOTTED = 20  # cells in the plot


def results(cells: Cells) -> Section | None:
    """The section, for cells that learn classes."""
    if not cells:
        return None
    letters = letters_of_conditions(cells)
    elements: list[Element] = [
        TableElement(scores_table(cells, letters), in_short=True),
        *[Note(words) for words in conditions_in_words(cells)],
    ]

    beside_linear = against_linear(cells)
    if beside_linear:
        elements.append(Paragraph(beside_linear))
    elements += table_elements(against_linear_table(cells))

    elements += side_by_side(_score_plot(cells))
    elements += table_elements(corpora_table(cells), chosen_table(cells))
    papers = papers_in_short(cells)
    if papers:
        elements.append(TableElement(papers, in_short=True))
    elements += table_elements(results_table(cells), papers_table(cells))
    return Section("results", "Results", elements)


def results_table(cells: Cells) -> Table:
    """One line per cell."""
    return Table(
        name="results",
        caption="Every score of each cell",
        columns=[
            Column("cell", TEXT),
            *columns_of(PERCENT_WITH_INTERVAL, [f"{name} %" for name in SHOWN]),
            *columns_of(PERCENT_WITH_DEVIATION, [f"{name} over seeds %" for name in SHOWN]),
            *columns_of(PERCENT_WITH_DEVIATION, [f"{name} over folds %" for name in SHOWN]),
            *columns_of(TEXT, ["interval over", "runs"]),
            Column("n", COUNT),
            Column("conditions", TEXT),
        ],
        rows=[_results_row(cell) for cell in cells],
        note=_results_note(cells),
        folded=True,
    )


def _results_note(cells: Cells) -> str:
    """What the columns are, and what to beware of."""
    sentences = [
        "UA: mean recall of the classes; WA: share that is right; macro-F1: mean F1 of the "
        "classes; all pooled over the folds of a seed, then the mean over the seeds, with the "
        "95 % interval (jackknife, Student’s t). ±: standard deviation, over seeds of the pooled "
        "score, over folds of each fold’s mean over the seeds. Runs: folds × seeds; n: "
        "predictions, one of each utterance and seed."
    ]
    if len(cells) > 1:
        sentences.append(CHOSEN)
    sentences.append(caution_of_unreal(cells))
    if any(cell.scores.predictions.over == "utterances" for cell in cells):
        sentences.append(
            "Too narrow: neither speakers nor dialogues are known, and utterances of a speaker are "
            "alike."
        )
    return joined(*sentences)


def _results_row(cell: Cell) -> Row:
    scores = {name: cell.scores.score(metric) for name, metric in SHOWN.items()}
    row: Row = {"cell": cell.label}
    for name, metric in SHOWN.items():
        row[f"{name} %"] = cell.scores.with_interval(metric)
    for name, score in scores.items():
        row[f"{name} over seeds %"] = score.over_seeds
    for name, score in scores.items():
        row[f"{name} over folds %"] = score.over_folds

    row["interval over"] = cell.scores.interval_over
    row["runs"] = cell.folds_and_seeds
    row["n"] = cell.scores.n
    row["conditions"] = conditions(cell.runs)
    return row


def _score_plot(cells: Cells) -> Plot:
    """The scores of each cell, with their intervals."""
    rows: list[Row] = []
    points: Points = []
    for cell in cells[:PLOTTED]:
        row: Row = {"cell": cell.label}
        for name, metric in SHOWN.items():
            row[f"{name} %"] = cell.scores.with_interval(metric)
            points.append((name, cell.label, row[f"{name} %"]))
        rows.append(row)

    by_chance = chance(len(cells[0].scores.classes))
    return Plot(
        table=Table(
            name="scores-plot",
            caption="Scores of each cell",
            columns=[
                Column("cell", TEXT),
                *columns_of(PERCENT_WITH_INTERVAL, [f"{name} %" for name in SHOWN]),
            ],
            rows=rows,
        ),
        title="Scores with their 95 % intervals",
        draw=partial(
            dots, points, xlabel="%", above=True, apart=True, baseline=by_chance, legend=3
        ),
        note=joined(f"Dashed: UA by chance, {by_chance:.0f} %.", drawn(cells, PLOTTED)),
    )


def corpora_table(cells: Cells) -> Table:
    """The scores of each corpus, and which corpora the model was trained on.

    For the cells of several corpora; no row without one.
    """
    rows: list[Row] = []
    for cell in cells:
        for row in corpora_rows(cell.scores):
            rows.append({"cell": cell.label, **row})
    return Table(
        name="corpora",
        caption="Scores of each corpus, and who trained",
        columns=[Column("cell", TEXT), *corpora_columns()],
        rows=rows,
        note=(
            "With 95 % intervals; the mean over corpora is the plain mean of these lines, the "
            "cell’s own score is pooled over all utterances. Trained on: the fewest and the most "
            "utterances in these folds."
        ),
    )


def chosen_table(cells: Cells) -> Table:
    """What each fold and seed of the searches chose; no row without a search."""
    rows: list[Row] = []
    searched: list[str] = []
    for cell in cells:
        if cell.search is not None:
            searched += cell.search.searched
            tried = len(cell.search.candidates)
            rows += chosen_rows(cell.label, tried, cell.search.searched, cell.runs)
    return Table(
        name="chosen",
        caption="What each fold chose on its dev part",
        columns=chosen_columns(searched),
        rows=rows,
        note=(
            "Tried: candidates, all trained; the one with the best dev score counts, and no other "
            "is tested here."
        ),
    )


def papers_table(cells: Cells) -> Table:
    """Ours beside the papers' numbers, as far as they have any.

    Without a difference where no comparison is meant.
    """
    rows: list[Row] = []
    for cell in cells:
        rows += _papers_rows(cell)

    all_unreal = all(caveat(cell.results) for cell in cells)
    any_unreal = any(caveat(cell.results) for cell in cells)
    note = (
        "Ours: pooled over the folds, mean ± standard deviation over the seeds, as Perspective "
        "reports; over folds: mean ± standard deviation of the folds’ means over the seeds."
    )
    meant = (
        "Differences: ours − paper in points, with the 95 % interval over the seeds; a number "
        "quoted without a deviation is taken for exact."
    )
    not_meant = (
        "A synthetic corpus or random weights: no comparison with the paper is meant, so no "
        "difference is given."
    )
    return Table(
        name="papers",
        caption="Every number of the papers beside ours",
        columns=[
            Column("cell", TEXT),
            Column("in the papers", TEXT),
            *beside_columns(MAIN),
            Column("differs in", TEXT),
        ],
        rows=rows,
        note=joined(note, "" if all_unreal else meant, not_meant if any_unreal else ""),
        folded=True,
    )


def _papers_rows(cell: Cell) -> list[Row]:
    """A line for each of the papers' numbers; places that give the same share one."""
    ours = {metric: cell.scores.score(metric) for metric in MAIN}
    meant = caveat(cell.results) is None

    def what_it_gives(quoted: Quoted) -> tuple[Any, ...]:
        return quoted.of(MAIN), quoted.seeds, quoted.differs

    rows = []
    quoted_cells = [quoted for quoted in quoted_for(cell) if quoted.of(MAIN)]
    for (numbers, seeds, differs), same in grouped(quoted_cells, what_it_gives).items():
        papers = []
        for paper, places in grouped(same, lambda quoted: quoted.paper).items():
            papers.append(f"{paper}, {'; '.join(quoted.place for quoted in places)}")

        row: Row = {"cell": cell.label, "in the papers": "; ".join(papers)}
        row |= beside(MAIN, dict(numbers), ours, seeds, alike=not differs, meant=meant)
        row["differs in"] = ", ".join(differs) or None
        rows.append(row)
    return rows
