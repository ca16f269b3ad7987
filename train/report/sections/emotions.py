"""Which emotions are recognised, and which are confused."""

from functools import partial

import numpy as np

from ..cell import Cell, Cells
from ..elements import Plot, Section, side_by_side
from ..figures import Points, dots, matrices
from ..formats import COUNT, PERCENT, TEXT
from ..paper import quoted_for
from ..table import Column, Row, Table, columns_of, joined
from .notes import drawn

PLOTTED = 4  # cells in a plot where each is a series


def emotions(cells: Cells) -> Section | None:
    """The section, for cells that learn classes. Plots show those with the first cell's classes."""
    if not cells:
        return None
    alike = [cell for cell in cells if cell.scores.classes == cells[0].scores.classes]
    plotted = alike[:PLOTTED]
    note = joined(
        drawn(cells, len(plotted)),
        "All are in the numbers." if len(plotted) < len(cells) else "",
    )
    plots = side_by_side(_recalls(cells, plotted, note), _confusions(alike, plotted, note))
    title = "Which emotions are recognised, and which are confused"
    return Section("emotions", title, plots)


def _recalls(cells: Cells, plotted: Cells, note: str) -> Plot:
    """The recall of each class, with the papers' below ours."""
    in_any_cell: dict[str, None] = {}
    for cell in cells:
        in_any_cell.update(dict.fromkeys(cell.scores.classes))
    classes = list(in_any_cell)
    rows: list[Row] = []
    for cell in cells:
        row: Row = {"cell": cell.label}
        for name in cell.scores.classes:
            row[f"{name} %"] = cell.scores.score(name).pooled
        rows.append(row)
        rows += _papers_recalls(cell, classes)

    points: Points = []
    for cell in plotted:
        for name in cell.scores.classes:
            points.append((cell.label, name, cell.scores.score(name).pooled))
    return Plot(
        table=Table(
            name="recalls",
            caption="Recall of each class",
            columns=[
                Column("cell", TEXT),
                *columns_of(PERCENT, [f"{name} %" for name in classes]),
            ],
            rows=rows,
        ),
        title="Recall of each class",
        draw=partial(dots, points, xlabel="recall %", xlim=(-2, 102), legend=1),
        note=note,
    )


def _papers_recalls(cell: Cell, classes: list[str]) -> list[Row]:
    """A line for each of the papers' cells that gives a recall."""
    rows = []
    for quoted in quoted_for(cell):
        recalls = {f"{name} %": quoted.numbers[name] for name in classes if name in quoted.numbers}
        if recalls:
            rows.append({"cell": f"paper: {quoted.described}", **recalls})
    return rows


def _confusions(alike: Cells, plotted: Cells, note: str) -> Plot:
    """The confusion matrices of cells with the same classes, added up over their runs."""
    classes = alike[0].scores.classes
    counts: dict[str, np.ndarray] = {}
    rows: list[Row] = []
    for cell in alike:
        counts[cell.label] = cell.scores.confusion()
        for name, of_class in zip(classes, counts[cell.label], strict=True):
            row: Row = {"cell": cell.label, "true class": name}
            for other, n in zip(classes, of_class, strict=True):
                row[f"as {other}"] = int(n)
            rows.append(row)

    shown = {cell.label: counts[cell.label] for cell in plotted}
    return Plot(
        table=Table(
            name="confusion",
            caption="Confusion: utterances of each class by prediction",
            columns=[
                *columns_of(TEXT, ["cell", "true class"]),
                *columns_of(COUNT, [f"as {name}" for name in classes]),
            ],
            rows=rows,
        ),
        title="Confusion, in percent of each true class",
        draw=partial(matrices, classes, shown),
        note=note,
    )
