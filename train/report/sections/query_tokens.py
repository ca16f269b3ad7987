"""How many query tokens it takes: MSMSER's figure 2, of cells that differ in nothing else."""

from functools import partial

from msgspec import structs

from ser.train.scores.measures import SHOWN
from ser.train.sweep.search_record import cell_name

from ..cell import Cell, Cells, grouped
from ..elements import Paragraph, Plot, Section, SideBySide
from ..figures import lines
from ..formats import COUNT, PERCENT, PERCENT_WITH_INTERVAL, TEXT
from ..paper import quoted_for
from ..table import Column, Row, Table, column_values, columns_of


def query_tokens(cells: Cells) -> Section | None:
    """UA against the number of query tokens; None if no cells differ in it alone."""
    with_queries = [cell for cell in cells if isinstance(cell.settings.get("queries"), int)]
    rows: list[Row] = []
    for family in grouped(with_queries, _all_but_queries).values():
        if len(family) > 1:
            rows += _family_rows(family)
    if not rows:
        return None

    highest = max(rows, key=lambda row: row["UA %"][0])
    words = (
        "The cells differ in the number of query tokens alone. UA is highest with "
        f"{highest['L']} query tokens, {highest['UA %'][0]:.2f} %: chosen on the test score."
    )
    title = "How many query tokens it takes"
    return Section("query-tokens", title, [SideBySide([Paragraph(words), _plot(rows)])])


def _all_but_queries(cell: Cell) -> str:
    """The same for cells that differ in the number of query tokens alone."""
    settings = dict(cell.config.settings)
    settings.pop("queries", None)
    return cell_name(structs.replace(cell.config, settings=settings))


def _family_rows(family: list[Cell]) -> list[Row]:
    """A line for each number of query tokens."""
    pieces = family[0].label.split(" · ")
    label = " · ".join(piece for piece in pieces if not piece.startswith("queries "))

    rows = []
    for cell in sorted(family, key=lambda cell: cell.settings["queries"]):
        row: Row = {"cells": label, "L": cell.settings["queries"]}
        for name, metric in SHOWN.items():
            row[f"{name} %"] = cell.scores.with_interval(metric)

        for quoted in quoted_for(cell):
            if "ua" in quoted.numbers and "queries" not in quoted.differs:
                row["paper UA %"] = quoted.numbers["ua"]
                row["in the papers"] = quoted.described
                break
        rows.append(row)
    return rows


def _plot(rows: list[Row]) -> Plot:
    return Plot(
        table=Table(
            name="queries",
            caption="UA against the number of query tokens",
            columns=[
                Column("cells", TEXT),
                Column("L", COUNT),
                *columns_of(PERCENT_WITH_INTERVAL, [f"{name} %" for name in SHOWN]),
                Column("paper UA %", PERCENT),
                Column("in the papers", TEXT),
            ],
            rows=rows,
        ),
        title="UA against the number of query tokens",
        draw=partial(
            lines,
            column_values(rows, "cells", "L", "UA %"),
            xlabel="query tokens L",
            ylabel="UA %",
            xscale="log",
            xmargin=0.12,
            legend=1,
        ),
        note="With 95 % intervals; MSMSER’s figure 2.",
    )
