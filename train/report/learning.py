"""Learning curves: the loss, and the score that selects the epoch."""

from collections.abc import Sequence

import numpy as np

from .cells import Cell
from .markup import Section, Side
from .plots import Plot, figure, legend, look, percent_axis, to_svg
from .tables import Column, Table

SHOWN = 4  # cells in the plot
LINES = 30  # epochs of each cell in the table


def section(ranked: Sequence[Cell]) -> Section:
    """The section, for all cells, highest UA first; the plots show the first ones."""
    plots = [_plot(ranked, "loss", "Training loss")]
    if any(np.isfinite(_curves(cell, "ua")).any() for cell in ranked):
        plots.append(_plot(ranked, "ua", "UA of the watched part"))
    return Section("training", "How training went", [Side(plots)])


def _curves(cell: Cell, name: str) -> np.ndarray:
    """One line per run, one column per epoch of all stages [runs, epochs]; NaN where nothing was watched."""
    histories = [result["history"] for result in cell.results]
    longest = max(map(len, histories))
    table = np.full((len(histories), longest), np.nan)
    for row, history in zip(table, histories, strict=True):
        row[: len(history)] = [np.nan if line[name] is None else line[name] for line in history]
    return table


def _plot(ranked: Sequence[Cell], name: str, title: str) -> Plot:
    shown = ranked[:SHOWN]
    with figure(250 + 20 * len(shown)) as (drawing, axes):
        for number, cell in enumerate(shown):
            table = _curves(cell, name)
            if not np.isfinite(table).any():
                continue
            epochs = np.arange(1, table.shape[1] + 1)
            style = {key: value for key, value in look(number).items() if key != "marker"}
            axes.plot(epochs, _mean(table), **style, label=cell.label)
            if len(table) > 1:
                low, high = np.fmin.reduce(table), np.fmax.reduce(table)
                axes.fill_between(epochs, low, high, color=style["color"], alpha=0.13, linewidth=0)
        if name == "ua":
            percent_axis(axes.yaxis)
        axes.set_ylabel("loss" if name == "loss" else "UA %")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend(drawing, axes, columns=1)
        svg = to_svg(drawing)
    curve = _mean(_curves(ranked[0], name))
    first, last = (f"{v:.3g}" if name == "loss" else f"{100 * v:.1f} %" for v in curve[[0, -1]])
    alt = f"{title} by epoch. {ranked[0].label}: from {first} to {last}."
    note = "Line: mean of the runs; band: their lowest and highest."
    if name == "ua":
        kept = [result["epoch"] for result in ranked[0].results]
        note += f" Watched: dev, or test with best-test. {ranked[0].label} kept epochs {min(kept)} to {max(kept)}."
    elif len(shown) < len(ranked):
        note += f" Drawn: the {len(shown)} cells with the highest UA of {len(ranked)}."
    return Plot(title, alt, svg, _data(ranked, name, title), note)


def _mean(table: np.ndarray) -> np.ndarray:
    counted = np.isfinite(table).sum(0)
    return np.where(counted > 0, np.nansum(table, 0) / np.maximum(counted, 1), np.nan)


def _data(ranked: Sequence[Cell], name: str, title: str) -> Table:
    rows = []
    for cell in ranked:
        curve = _mean(_curves(cell, name))
        for epoch in sorted({round(e) for e in np.linspace(0, len(curve) - 1, min(LINES, len(curve)))}):
            rows.append([cell.label, epoch + 1, None if np.isnan(curve[epoch]) else float(curve[epoch])])
    value = Column("loss", "number") if name == "loss" else Column("UA %", "percent")
    note = (
        f"Mean of the runs; up to {LINES} epochs of each cell, evenly spread. Every epoch is in the runs’ result.json."
    )
    return Table(f"learning-{name}", title, [Column("cell"), Column("epoch", "count"), value], rows, note)
