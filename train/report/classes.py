"""Per class: recalls, and what is taken for what."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Rectangle

from .cells import Cell
from .markup import Section, Side
from .paper import quoted_for
from .plots import GRID, SERIES, Plot, figure, legend, look, percent_axis, to_svg
from .tables import Column, Table

SHOWN = 4  # cells in the plots; all are in the tables


def section(ranked: Sequence[Cell]) -> Section:
    """The section, for all cells, highest UA first; the plots show the first ones."""
    shown = [cell for cell in ranked if cell.classes == ranked[0].classes][:SHOWN]
    return Section(
        "emotions",
        "Which emotions are told, and which are confused",
        [Side([_recalls(ranked, shown), _confusions(ranked, shown)])],
    )


def _recalls(ranked: Sequence[Cell], shown: Sequence[Cell]) -> Plot:
    classes = ranked[0].classes
    with figure(70 + 22 * len(shown) + 30 * len(classes)) as (drawing, axes):
        for number, cell in enumerate(shown):
            offsets = np.arange(len(classes)) + (number - (len(shown) - 1) / 2) * 0.16
            values = [cell.pooled["per_class"][name] for name in classes]
            axes.plot(
                [np.nan if v is None else v for v in values],
                offsets,
                **{**look(number), "linestyle": ""},
                label=cell.label,
            )
        axes.set_yticks(range(len(classes)), classes)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        percent_axis(axes.xaxis, -0.02, 1.02)
        axes.set_xlabel("recall %")
        legend(drawing, axes, columns=1)
        svg = to_svg(drawing)
    every = list(dict.fromkeys(name for cell in ranked for name in cell.classes))
    rows = []
    for cell in ranked:
        rows.append([cell.label, *(cell.pooled["per_class"].get(name) for name in every)])
        for quoted in quoted_for(cell):
            if any(name in quoted.numbers for name in every):
                rows.append([f"{quoted.where} (paper)", *(quoted.score(name) for name in every)])
    data = Table(
        "recalls", "Recall of each class", [Column("cell"), *(Column(f"{n} %", "percent") for n in every)], rows
    )
    best = ranked[0].pooled["per_class"]
    told = ", ".join(f"{name} {100 * value:.0f} %" for name, value in best.items() if value is not None)
    return Plot("Recall of each class", f"Dot plot; {ranked[0].label}: {told}.", svg, data, _which(ranked, shown))


def _which(ranked: Sequence[Cell], shown: Sequence[Cell]) -> str:
    return (
        ""
        if len(shown) == len(ranked)
        else f"Drawn: the {len(shown)} cells with the highest UA of {len(ranked)}; all are in the numbers."
    )


def _confusions(ranked: Sequence[Cell], shown: Sequence[Cell]) -> Plot:
    classes = shown[0].classes
    across = 1 if len(shown) == 1 else 2
    down = -(-len(shown) // across)
    side = 420 / across
    with figure(down * (side * 0.82 + 46), nrows=down, ncols=across, squeeze=False) as (drawing, grid):
        for axes, cell in zip(grid.flat, shown, strict=False):
            counts = np.array(cell.pooled["confusion"])
            shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            for row, column in np.ndindex(shares.shape):
                share = shares[row, column]
                box = (column - 0.5, row - 0.5)
                axes.add_patch(_box(box, share))
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center")
            axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5), aspect="equal")
            axes.set_xticks(range(len(classes)), classes)
            axes.set_yticks(range(len(classes)), classes)
            axes.tick_params(length=0)
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.set_title(
                "\n".join(textwrap.wrap(cell.label, 44 // across, max_lines=2, placeholder=" …")), fontsize=11.5
            )
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("true")
        for axes in grid[-1, :]:
            axes.set_xlabel("predicted")
        svg = to_svg(drawing)
    rows = [
        [cell.label, name, *row]
        for cell in ranked
        if cell.classes == classes
        for name, row in zip(classes, cell.pooled["confusion"], strict=True)
    ]
    columns = [Column("cell"), Column("true class"), *(Column(f"as {name}", "count") for name in classes)]
    data = Table("confusion", "Confusion: utterances of each class by prediction", columns, rows)
    counts = np.array(shown[0].pooled["confusion"], dtype=float)
    np.fill_diagonal(counts, 0)
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    alt = "Confusion matrices in percent of each true class. "
    alt += f"{shown[0].label} most often takes {classes[row]} for {classes[column]}."
    return Plot("Confusion, in percent of each true class", alt, svg, data, _which(ranked, shown))


def _box(corner: tuple[float, float], share: float) -> Rectangle:
    return Rectangle(corner, 1, 1, facecolor=SERIES[0], alpha=float(0.04 + 0.6 * share), edgecolor=GRID, linewidth=0)
