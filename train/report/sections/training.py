"""How training went: loss and scores over the epochs, and what layers count in their sums."""

from functools import partial

import numpy as np

from ser.train.scores.curves import curve_over_epochs
from ser.train.scores.pooling import spread

from ..cell import Cell, Cells
from ..elements import Plot, Section, side_by_side, table_elements
from ..figures import Points, lines
from ..formats import COUNT, FINE, NUMBER, PERCENT, PERCENT_WITH_DEVIATION, TEXT
from ..table import Column, Row, Table, columns_of, evenly, joined
from .layers import fixed_layer
from .notes import drawn

PLOTTED = 4  # cells in a plot where each is a series
EPOCHS = 30  # of each cell in the table


def training(cells: Cells) -> Section | None:
    """The section; None where no run has an epoch."""
    in_epochs = [cell for cell in cells if not _is_solved(cell)]
    classifying = [cell for cell in in_epochs if cell.scores.classes]
    rating = [cell for cell in in_epochs if cell.scores.dimensions]
    plots = side_by_side(
        _curves(in_epochs, "loss", "Training loss", Column("loss", NUMBER)),
        _curves(classifying, "ua", "UA of the evaluated part", Column("UA %", PERCENT), scale=100),
        _curves(rating, "ccc", "Mean CCC of the evaluated part", Column("mean CCC", FINE)),
    )
    elements = [*plots, *table_elements(layers_table(cells))]
    return Section("training", "How training went", elements) if elements else None


def _is_solved(cell: Cell) -> bool:
    """Whether the cell's models had no training loop: their epochs are what was tried, or none."""
    history = cell.results[0].history
    return not history or history[0].tried is not None


def _curves(cells: Cells, key: str, title: str, column: Column, scale: int = 1) -> Plot | None:
    """The loss, or a score of the evaluated part, over the epochs, stage after stage.

    Of the cells that have it; None where none has.
    """
    points: Points = []
    rows: list[Row] = []
    cells_with_a_curve = 0
    for cell in cells:
        histories = []
        for result in cell.results:
            stages = [epoch.stage for epoch in result.history]
            values = [epoch.score(key) for epoch in result.history]
            histories.append((stages, values))

        curve = scale * curve_over_epochs(histories)
        if curve["mean"].isna().all():
            continue
        if cells_with_a_curve < PLOTTED:
            for epoch, (mean, low, high) in enumerate(curve.to_numpy(), 1):
                points.append((cell.label, epoch, (mean, low, high)))
        cells_with_a_curve += 1

        for place in evenly(len(curve), EPOCHS):
            mean = float(curve["mean"].iloc[place])
            rows.append({"cell": cell.label, "epoch": place + 1, column.heading: mean})
    if not rows:
        return None

    evaluated = "Dev, or test with best-test." if key != "loss" else ""
    return Plot(
        table=Table(
            name=f"learning-{key}",
            caption=title,
            columns=[Column("cell", TEXT), Column("epoch", COUNT), column],
            rows=rows,
            note=(
                f"Mean of the runs; up to {EPOCHS} epochs of each cell, evenly spread; all are in "
                "the runs’ result.json."
            ),
        ),
        title=title,
        draw=partial(lines, points, xlabel="epoch", ylabel=column.heading, band=True, legend=1),
        note=joined(
            "Line: mean of the runs that came so far; band: their lowest and highest. Stages, such "
            "as a refit, follow each other.",
            drawn(cells, PLOTTED),
            evaluated,
        ),
    )


def layers_table(cells: Cells) -> Table:
    """What the layers of a joined feature count in learned sums; no row where nothing is summed."""
    rows: list[Row] = []
    for cell in cells:
        if fixed_layer(cell) is not None:
            # All of it, as was set.
            continue
        weights_by_run = [result.layers or {} for result in cell.results]
        for name in weights_by_run[0]:
            shares = [100 * weights[name] for weights in weights_by_run if name in weights]
            rows.append({"cell": cell.label, "layer": name, "share %": spread(np.array(shares))})
    return Table(
        name="layers",
        caption="What each layer counts in its sum",
        columns=[*columns_of(TEXT, ["cell", "layer"]), Column("share %", PERCENT_WITH_DEVIATION)],
        rows=rows,
        note=(
            "Softmax of the learned weights: mean ± standard deviation over the runs; those of a "
            "sum add up to 100. Of a linear model 100 where dev chose the layer."
        ),
    )
