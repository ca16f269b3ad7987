"""The report's section about valence, arousal and dominance, of the cells that learn them."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from .cell_scores import named
from .cells import Cell
from .figures import Point, lines
from .html import Part, Plot
from .tables import Row, Table

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
    for cell in (cell for cell in cells if cell.dimensions):
        for test in cell.tests:
            row: Row = {"cell": cell.label, "tested with": test, "mean CCC": cell.score("ccc", test).pooled}
            row |= {named(metric): cell.with_interval(metric, test) for metric in cell.rated}
            row |= {"scale": cell.scale, "interval over": cell.interval_over, "n": cell.n}
            rows.append({**row, "conditions": cell.conditions})
    note = "CCC: Lin’s concordance correlation coefficient, 1 at best; RMSE: in the units of the corpus’s scale. Both "
    note += "over all predictions of a seed, its folds together, then the mean over the seeds, with the 95 % interval "
    note += "(jackknife, Student’s t). Tests between cells are made for classes, not for these scores."
    return Table("ratings", "Valence, arousal and dominance", rows, note)


def _scatters(cell: Cell) -> list[Plot]:
    """Truth over prediction of each dimension."""
    truth, predicted = cell.ratings()
    drawn = np.linspace(0, len(truth) - 1, min(DOTS, len(truth))).round().astype(int)
    note = f"{cell.label}: {len(drawn):,} of {len(truth):,} predictions, evenly spread. Dashed: predicted as rated."
    plots = []
    for d, name in enumerate(cell.dimensions):
        pairs = np.stack([predicted[drawn, d], truth[drawn, d]], axis=1).tolist()
        points: list[Point] = [(name, *pair) for pair in pairs]
        data = Table(
            f"scatter-{name}",
            f"{name.capitalize()}: predicted and rated",
            [dict(zip(("predicted", "rated"), pair, strict=True)) for pair in pairs],
        )
        draw = partial(lines, points, f"predicted {name}", "rated", joined=False, diagonal=True, legend=0)
        plots.append(Plot(f"{name.capitalize()}, predicted and rated", data, draw, note))
    return plots


def _calibration(cell: Cell) -> Plot:
    """The mean rating in each bin of predictions, by dimension."""
    rows: list[Row] = []
    for name, truth, predicted in zip(cell.dimensions, *(each.T for each in cell.ratings()), strict=True):
        for bin_ in np.array_split(np.argsort(predicted, kind="stable"), min(BINS, len(predicted))):
            means = {"mean predicted": float(predicted[bin_].mean()), "mean rated": float(truth[bin_].mean())}
            rows.append({"dimension": name, **means, "predictions": len(bin_)})
    points = [(row["dimension"], row["mean predicted"], row["mean rated"]) for row in rows]
    draw = partial(lines, points, "mean predicted", "mean rated", diagonal=True, legend=3)
    note = f"{cell.label}: predictions in order of size, in {BINS} bins of as many each. Dashed: predicted as rated."
    return Plot("Calibration", Table("calibration-ratings", "Calibration of the ratings", rows), draw, note)
