"""The raters' agreement against the model's confidence."""

from typing import Any

import numpy as np

from .cells import Cell
from .groups import wilson
from .plots import SERIES, Plot, figure, legend, look, percent_axis, to_svg
from .tables import Column, Table, percent
from .utterances import Origin

# Names, and the shares from and below which they hold: two of three raters lie in the second.
BINS = (("under 60 %", 0.0, 0.6), ("60–79 %", 0.6, 0.8), ("80–99 %", 0.8, 0.999), ("all", 0.999, 2.0))


def agreement_plot(cell: Cell, origin: Origin) -> Plot | None:
    """Confidence and recall by the share of the raters' votes that stand behind the label."""
    shares = origin.agreement(cell)
    if not np.isfinite(shares).any():
        return None
    p = cell.predictions
    confidence = p.probabilities.max(1)
    rows: list[list[Any]] = []
    for name, low, high in BINS:
        inside = (shares >= low) & (shares < high)
        if inside.any():
            n = len(set(p.ids[inside]))
            right = wilson(float(p.right[inside].mean()) * n, n)
            rows.append([name, n, right, float(confidence[inside].mean()), float(p.of_truth[inside].mean())])
    with figure(265) as (drawing, axes):
        x = np.arange(len(rows))
        measures = (
            ("right", [r[2].value for r in rows]),
            ("confidence", [r[3] for r in rows]),
            ("given to the truth", [r[4] for r in rows]),
        )
        for number, (label, values) in enumerate(measures):
            axes.plot(x, values, **look(number), label=label)
        axes.vlines(x, [r[2].low for r in rows], [r[2].high for r in rows], color=SERIES[0], linewidth=1.5)
        axes.set_xticks(x, [f"{r[0]}\nn {r[1]:,}" for r in rows])
        axes.margins(x=0.12)
        percent_axis(axes.yaxis, 0, 1.02)
        axes.set_ylabel("%")
        axes.set_xlabel("raters for the label")
        legend(drawing, axes, columns=3)
        svg = to_svg(drawing)
    finite = np.isfinite(shares)
    rank = _spearman(shares[finite], p.of_truth[finite])
    columns = [Column("raters for the label"), Column("utterances", "count"), Column("right %", "interval")]
    columns += [Column("confidence %", "percent"), Column("given to the truth %", "percent")]
    data = Table("agreement", "Agreement of the raters against confidence", columns, rows)
    note = "Confidence: mean probability of the predicted class. A rater’s several votes count in parts."
    if rank is not None:
        sign = "−" if rank < 0 else "+"
        note = f"Spearman’s correlation of agreement and what is given to the truth: {sign}{abs(rank):.2f}. {note}"
    surest, least = (
        f"{percent(rows[i][2].value)} right with {rows[i][0]} of the raters for the label" for i in (-1, 0)
    )
    alt = f"{surest}; {least}."
    return Plot("Agreement of the raters against confidence", alt, svg, data, note)


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    from scipy.stats import spearmanr

    if len(set(first.tolist())) < 2 or len(set(second.tolist())) < 2:
        return None
    return float(spearmanr(first, second).statistic)
