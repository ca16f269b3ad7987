"""Valence, arousal and dominance: their scores, and how predictions and ratings go together."""

from functools import partial

import numpy as np

from ser.train.scores.ratings import sliced_means

from ..cell import Cell, Cells
from ..conditions import conditions
from ..elements import (
    Element,
    Note,
    Plot,
    Section,
    TableElement,
    side_by_side,
    table_elements,
)
from ..figures import Points, lines
from ..formats import COUNT, FINE, FINE_WITH_INTERVAL, NUMBER, TEXT
from ..headings import heading_of
from ..short_tables import conditions_in_words, letters_of_conditions, ratings_in_short
from ..table import Column, Row, Table, column_values, columns_of, evenly

DOTS = 300  # of a scatter plot
SLICES = 10  # of the predicted ratings in their order, of equally many each


def ratings(cells: Cells) -> Section | None:
    """The scores of all cells that learn them, and truth over prediction of the best one.

    That is the one with the highest mean CCC.
    """
    rated = [cell for cell in cells if cell.scores.dimensions]
    if not rated:
        return None
    best = max(rated, key=lambda cell: cell.scores.score("ccc").pooled)
    truth, predicted = best.scores.predictions.ratings()

    plots = []
    for number, name in enumerate(best.scores.dimensions):
        plots.append(_scatter(best, name, truth[:, number], predicted[:, number]))
    plots.append(_calibration_of_ratings(best, truth, predicted))

    letters = letters_of_conditions(rated)
    elements: list[Element] = [
        TableElement(ratings_in_short(rated, letters), in_short=True),
        *[Note(words) for words in conditions_in_words(rated)],
        *side_by_side(*plots),
        *table_elements(ratings_table(cells)),
    ]
    return Section("ratings", "Valence, arousal and dominance", elements)


def ratings_table(cells: Cells) -> Table:
    """One line per cell and way to test it, of those that learn ratings."""
    rows: list[Row] = []
    for cell in cells:
        if not cell.scores.dimensions:
            continue
        for test in cell.scores.tests:
            row: Row = {
                "cell": cell.label,
                "tested with": test,
                "mean CCC": cell.scores.score("ccc", test).pooled,
            }
            for metric in cell.scores.rated:
                row[heading_of(metric)] = cell.scores.with_interval(metric, test)
            row["scale"] = cell.config.training["vad_scale"]
            row["interval over"] = cell.scores.interval_over
            row["n"] = cell.scores.n
            row["conditions"] = conditions(cell.runs)
            rows.append(row)

    scores: dict[str, None] = {}
    for cell in cells:
        scores.update(dict.fromkeys(heading_of(metric) for metric in cell.scores.rated))
    return Table(
        name="ratings",
        caption="Every score of valence, arousal and dominance",
        columns=[
            *columns_of(TEXT, ["cell", "tested with"]),
            Column("mean CCC", FINE),
            *columns_of(FINE_WITH_INTERVAL, scores),
            *columns_of(TEXT, ["scale", "interval over"]),
            Column("n", COUNT),
            Column("conditions", TEXT),
        ],
        rows=rows,
        note=(
            "CCC: Lin’s concordance correlation coefficient, 1 at best; RMSE: in the units of the "
            "corpus’s scale. Both over all predictions of a seed, its folds together, then the "
            "mean over the seeds, with the 95 % interval (jackknife, Student’s t); that of RMSE "
            "is too narrow, and holds the truth in about 91 % of simulated corpora. Tests between "
            "cells are made for classes, not for these scores."
        ),
        folded=True,
    )


def _scatter(cell: Cell, dimension: str, truth: np.ndarray, predicted: np.ndarray) -> Plot:
    """Some predictions of one dimension `[n]` and their ratings `[n]`."""
    rows: list[Row] = []
    points: Points = []
    for place in evenly(len(truth), DOTS):
        rows.append({"predicted": float(predicted[place]), "rated": float(truth[place])})
        points.append((dimension, float(predicted[place]), float(truth[place])))

    name = dimension.capitalize()
    return Plot(
        table=Table(
            name=f"scatter-{dimension}",
            caption=f"{name}: predicted and rated",
            columns=columns_of(NUMBER, ["predicted", "rated"]),
            rows=rows,
        ),
        title=f"{name}, predicted and rated",
        draw=partial(
            lines,
            points,
            xlabel=f"predicted {dimension}",
            ylabel="rated",
            joined=False,
            diagonal=True,
        ),
        note=(
            f"{cell.label}: {len(rows):,} of {len(truth):,} predictions, evenly spread. "
            "Dashed: predicted as rated."
        ),
    )


def _calibration_of_ratings(cell: Cell, truth: np.ndarray, predicted: np.ndarray) -> Plot:
    """The mean rating in each slice of the predictions `[n, D]`, by dimension."""
    rows: list[Row] = []
    for number, name in enumerate(cell.scores.dimensions):
        slices = sliced_means(truth[:, number], predicted[:, number], SLICES)
        for mean_predicted, mean_rated, n in slices:
            rows.append(
                {
                    "dimension": name,
                    "mean predicted": mean_predicted,
                    "mean rated": mean_rated,
                    "predictions": n,
                }
            )
    return Plot(
        table=Table(
            name="calibration-ratings",
            caption="Calibration of the ratings",
            columns=[
                Column("dimension", TEXT),
                *columns_of(NUMBER, ["mean predicted", "mean rated"]),
                Column("predictions", COUNT),
            ],
            rows=rows,
        ),
        title="Calibration",
        draw=partial(
            lines,
            column_values(rows, "dimension", "mean predicted", "mean rated"),
            xlabel="mean predicted",
            ylabel="mean rated",
            diagonal=True,
            legend=3,
        ),
        note=(
            f"{cell.label}: predictions in order of size, in {SLICES} bins of as many each. "
            "Dashed: predicted as rated."
        ),
    )
