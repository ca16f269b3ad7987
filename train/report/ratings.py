"""The report's section about valence, arousal and dominance, of the cells that learn them."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from .cell_scores import named
from .cells import Cell
from .figures import lines
from .html import Part
from .tables import Row, Table, described

DOTS = 300  # of a scatter plot
BINS = 10  # of a calibration plot, of equally many predictions each


def ratings(cells: Sequence[Cell]) -> Part:
    """The scores of all cells; scatter and calibration of the one with the highest mean CCC. Nothing without any."""
    cells = [cell for cell in cells if cell.dimensions]
    if not cells:
        return {}
    best = max(cells, key=lambda cell: cell.score("ccc").pooled)
    return {"scores": ratings_table(cells), "plots": [*_scatters(best), _calibration(best)]}


def ratings_table(cells: Sequence[Cell]) -> Table:
    """One line per cell and way to test it."""
    rows = []
    for cell, test in [(one, test) for one in cells if one.dimensions for test in one.tests]:
        row: Row = {"cell": cell.label, "tested with": test, "mean CCC": cell.score("ccc", test).pooled}
        row |= {named(metric): cell.with_interval(metric, test) for metric in cell.rated}
        row |= {"scale": cell.scale, "interval over": cell.interval_over, "n": cell.n}
        rows.append({**row, "conditions": cell.conditions})
    return described("ratings", rows)


def _scatters(cell: Cell) -> list[Table]:
    """Truth over prediction of each dimension."""
    truth, predicted = cell.ratings()
    some = np.linspace(0, len(truth) - 1, min(DOTS, len(truth))).round().astype(int)
    told = {"cell": cell.label, "drawn": len(some), "n": len(truth)}
    plots = []
    for d, name in enumerate(cell.dimensions):
        pairs = np.stack([predicted[some, d], truth[some, d]], axis=1).tolist()
        points = [(name, *pair) for pair in pairs]
        draw = partial(lines, points, f"predicted {name}", "rated", joined=False, diagonal=True, legend=0)
        rows = [dict(zip(("predicted", "rated"), pair, strict=True)) for pair in pairs]
        plots.append(described("scatter", rows, draw=draw, name=f"scatter-{name}", dimension=name.capitalize(), **told))
    return plots


def _calibration(cell: Cell) -> Table:
    """The mean rating in each bin of predictions, by dimension."""
    rows: list[Row] = []
    for name, truth, predicted in zip(cell.dimensions, *(each.T for each in cell.ratings()), strict=True):
        for bin_ in np.array_split(np.argsort(predicted, kind="stable"), min(BINS, len(predicted))):
            means = {"mean predicted": float(predicted[bin_].mean()), "mean rated": float(truth[bin_].mean())}
            rows.append({"dimension": name, **means, "predictions": len(bin_)})
    points = [(row["dimension"], row["mean predicted"], row["mean rated"]) for row in rows]
    draw = partial(lines, points, "mean predicted", "mean rated", diagonal=True, legend=3)
    return described("calibration-ratings", rows, draw=draw, cell=cell.label, bins=BINS)
