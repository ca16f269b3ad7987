"""What each modality brings: the same trained model, shown one of them alone."""

from functools import partial

from ser.train.scores.measures import SHOWN
from ser.train.sweep.recipe import TESTS

from ..cell import Cell, Cells
from ..conditions import caveat
from ..elements import Paragraph, Plot, Section, SideBySide
from ..figures import dots
from ..formats import PERCENT, TEXT
from ..paper import quoted_for
from ..table import Column, Row, Table, column_values, columns_of, joined
from .notes import drawn

PLOTTED = 12  # cells
QUOTED = ("ua", "wa")


def modalities(cells: Cells) -> Section | None:
    """How much a model leans on one modality; None if no cell has more than one way of testing."""
    testable = [cell for cell in cells if set(cell.scores.tests) & set(TESTS[1:])]
    if not testable:
        return None
    rows: list[Row] = []
    for cell in testable:
        for test in TESTS:
            if test in cell.scores.tests:
                rows.append(_row(cell, test))

    elements = [Paragraph(_words(rows)), _plot(testable, rows)]
    return Section("modalities", "What each modality brings", [SideBySide(elements)])


def _row(cell: Cell, test: str) -> Row:
    """One cell, tested in one way."""
    quoted = next((quoted for quoted in quoted_for(cell, test) if quoted.of(QUOTED)), None)
    row: Row = {"cell": cell.label, "tested with": test}
    for name, metric in SHOWN.items():
        row[f"{name} %"] = cell.scores.score(metric, test).pooled
    for metric in QUOTED:
        row[f"paper {metric.upper()} %"] = quoted.numbers.get(metric) if quoted else None
    row["in the papers"] = quoted.described if quoted else None
    return row


def _words(rows: list[Row]) -> str:
    """What the ways of testing are, and the first cell's UA in each."""
    tests = {row["tested with"] for row in rows}
    heads = (
        "Heads: the model’s own classifiers of one modality, without the other."
        if tests & {"head audio", "head text"}
        else ""
    )
    first = rows[0]["cell"]
    scores = [f"{row['tested with']} {row['UA %']:.2f} %" for row in rows if row["cell"] == first]
    return joined(
        "Only text and only audio: the same trained model, with the other modality hidden in the "
        "test.",
        heads,
        f"{first}: {', '.join(scores)}.",
    )


def _plot(cells: Cells, rows: list[Row]) -> Plot:
    plotted = {cell.label for cell in cells[:PLOTTED]}
    points = column_values(
        [row for row in rows if row["cell"] in plotted], "tested with", "cell", "UA %"
    )
    unreal = any(caveat(cell.results) for cell in cells)
    return Plot(
        table=Table(
            name="bias",
            caption="UA, WA and macro-F1 by what the test shows the model",
            columns=[
                *columns_of(TEXT, ["cell", "tested with"]),
                *columns_of(PERCENT, [f"{name} %" for name in SHOWN]),
                *columns_of(PERCENT, [f"paper {metric.upper()} %" for metric in QUOTED]),
                Column("in the papers", TEXT),
            ],
            rows=rows,
        ),
        title="UA by what the test shows the model",
        draw=partial(dots, points, xlabel="UA %", above=True, legend=3),
        note=joined(
            drawn(cells, PLOTTED),
            "Beside the papers’ numbers no comparison is meant." if unreal else "",
        ),
    )
