"""A table of a report: rows of values below columns, which say how their values are shown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .formats import Format

Row = dict[str, Any]  # values by heading; None, or no such heading, where there is none


@dataclass(frozen=True)
class Column:
    """A column: its heading, and how its values are shown."""

    heading: str
    format: Format


@dataclass(frozen=True)
class Table:
    """Rows of values below their columns. A table without rows is false.

    A column that no row has is not shown. The others stand in the order in which the rows first
    have them: what the rows of some cells alone have stands behind what all have.
    """

    name: str  # of letters, digits and hyphens: its anchor in the page, its label in LaTeX
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
    folded: bool = False  # behind its caption in the page
    names: int = 1  # columns, from the left, that name a row

    def __bool__(self) -> bool:
        return bool(self.rows)

    @cached_property
    def shown_columns(self) -> list[Column]:
        """The columns that a row has.

        Raises `KeyError` for a heading without a column.
        """
        by_heading = {column.heading: column for column in self.columns}
        headings: dict[str, None] = {}
        for row in self.rows:
            headings.update(dict.fromkeys(row))
        return [by_heading[heading] for heading in headings]

    @property
    def headings(self) -> list[str]:
        return [column.heading for column in self.shown_columns]

    @cached_property
    def texts(self) -> list[list[str]]:
        """The rows as a reader sees them."""
        lines = []
        for row in self.rows:
            line = [column.format.shown(row.get(column.heading)) for column in self.shown_columns]
            lines.append(line)
        return lines

    def first_value(self, column: Column) -> Any:
        """The first value below a heading; None if there is none."""
        for row in self.rows:
            value = row.get(column.heading)
            if value is not None:
                return value
        return None

    def to_the_right(self, column: Column) -> bool:
        """Whether the column stands to the right, as numbers do."""
        return column.format.to_the_right(self.first_value(column))


def columns_of(format: Format, headings: Iterable[str]) -> list[Column]:
    """Columns that are all shown alike."""
    return [Column(heading, format) for heading in headings]


def column_values(rows: Sequence[Row], *headings: str) -> list[Any]:
    """The values below these headings, as a tuple for each row: the points of a plot."""
    values = []
    for row in rows:
        values.append(tuple(row[heading] for heading in headings))
    return values


def evenly(n: int, limit: int) -> list[int]:
    """At most `limit` of n places, evenly spread."""
    return np.linspace(0, n - 1, min(limit, n)).round().astype(int).tolist()


def joined(*sentences: str) -> str:
    """A note of these sentences, of which some may be empty."""
    return " ".join(sentence for sentence in sentences if sentence)
