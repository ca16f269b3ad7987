"""Which layer of an encoder tells the classes: a curve over the layers, and what chose among them.

A point of the curve is a cell whose setting `layer` is fixed (`ser sweep layers`). Beside it stand
what dev chose, fold by fold, and what the layers count in a learned sum on the same features.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ser.train.models import FUSIONS
from ser.train.models.solved import ALL_LAYERS, BY_DEV

from ..cell import Cell, Cells, grouped
from ..elements import Paragraph, Plot, Section
from ..figures import Points, lines
from ..formats import COUNT, PERCENT_WITH_DEVIATION, PERCENT_WITH_INTERVAL, TEXT
from ..table import Column, Row, Table

TITLE = "What each layer holds"


def layers(cells: Cells) -> Section | None:
    """The section, of cells that learn classes; None where none is of a single layer of several."""
    fixed = [cell for cell in cells if fixed_layer(cell) is not None]
    plots: list[Plot] = []
    for members in grouped(fixed, _what_is_alike).values():
        if len(members) > 1:
            plots.append(_curve(members, _beside(members[0], cells), len(plots)))
    if not plots:
        return None
    words = Paragraph(
        "Each layer by itself, on the test part: the curve says what a layer holds. The highest "
        "point of it is chosen on the test score; what dev chose, fold by fold, stands beside it."
    )
    return Section("over-layers", TITLE, [words, *plots])


def fixed_layer(cell: Cell) -> int | None:
    """The layer that the cell's model is told to see; None where it is told of none."""
    layer = cell.settings.get("layer", BY_DEV)
    return None if layer in (BY_DEV, ALL_LAYERS) else int(layer)


def _what_is_alike(cell: Cell) -> tuple[Any, ...]:
    """What the cells of one curve share: all but the layer."""
    settings = {key: value for key, value in cell.settings.items() if key != "layer"}
    return cell.config.fusion, str(sorted(settings.items())), str(_data(cell))


def _data(cell: Cell) -> tuple[Any, ...]:
    """The features, the utterances and how they are cut."""
    config = cell.config
    return config.features, config.corpus, config.labels, config.protocol, config.select


def _beside(member: Cell, cells: Cells) -> Sequence[Cell]:
    """The cells on the same layers that choose one on dev, or learn their sum."""
    beside = []
    for cell in cells:
        is_open = cell.settings.get("layer", BY_DEV) == BY_DEV
        if is_open and _data(cell) == _data(member) and cell.results[0].layers:
            beside.append(cell)
    return beside


def _curve(members: Sequence[Cell], beside: Sequence[Cell], number: int) -> Plot:
    """UA over the layers, with its intervals; the shares of the cells beside it."""
    columns = [
        Column("layer", COUNT),
        Column("feature", TEXT),
        Column("UA %", PERCENT_WITH_INTERVAL),
    ]
    headings = {}
    for cell in beside:
        fusion = FUSIONS.get(cell.config.fusion)
        kind = "chosen on dev by" if fusion and fusion.solved else "in the sum of"
        headings[cell.label] = f"% {kind} {cell.label}"
        columns.append(Column(headings[cell.label], PERCENT_WITH_DEVIATION))

    points: Points = []
    rows: list[Row] = []
    for cell in sorted(members, key=lambda cell: fixed_layer(cell) or 0):
        layer = fixed_layer(cell)
        shares = cell.results[0].layers or {}
        name = max(shares, key=lambda name: shares[name])
        score = cell.scores.with_interval("ua")
        row: Row = {"layer": layer, "feature": name, "UA %": score}
        for other in beside:
            row[headings[other.label]] = _share(other, name)
        rows.append(row)
        points.append((cell.config.fusion, layer, score))

    note = (
        "Bars: 95 % intervals. Shares: mean ± standard deviation over the runs; of a linear model "
        "100 where dev chose the layer."
    )
    table = Table(
        name=f"curve-over-layers-{number + 1}" if number else "curve-over-layers",
        caption="UA of each layer",
        columns=columns,
        rows=rows,
        note=note,
    )
    title = f"UA over the layers, {members[0].config.fusion}"
    draw = partial(lines, points, xlabel="layer", ylabel="UA %")
    return Plot(table=table, title=title, draw=draw, note=note)


def _share(cell: Cell, name: str) -> tuple[float, float | None]:
    """What a layer counts in a cell, in percent: the mean of its runs, and their deviation."""
    shares = [100 * (result.layers or {}).get(name, 0.0) for result in cell.results]
    deviation = float(np.std(shares, ddof=1)) if len(shares) > 1 else None
    return float(np.mean(shares)), deviation
