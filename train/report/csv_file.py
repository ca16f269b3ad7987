"""Tables for a spreadsheet, with every digit that is worth keeping."""

import csv
import io

from .formats import harmless
from .table import Column, Table


def to_csv(table: Table) -> str:
    """A line with the caption, one with the headings, then the rows.

    A value with an interval or a deviation takes a column for each of its numbers; a column without
    any value takes one.
    """
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([harmless(table.caption)])

    headings = []
    for column in table.shown_columns:
        for part in _parts(table, column):
            headings.append(harmless(column.heading) + part)
    writer.writerow(headings)

    for row in table.rows:
        texts: list[str] = []
        for column in table.shown_columns:
            value = row.get(column.heading)
            if isinstance(value, tuple):
                texts += [_exact_part(column, part) for part in value]
            else:
                missing = len(_parts(table, column)) - 1
                texts += [column.format.exact(value), *[""] * missing]
        writer.writerow(texts)
    return sink.getvalue()


def _exact_part(column: Column, part: float | None) -> str:
    return column.format.exact(part if part is None else float(part))


def _parts(table: Table, column: Column) -> tuple[str, ...]:
    """What is added to the column's heading for each of the columns that it takes."""
    has_values = table.first_value(column) is not None
    return column.format.parts if has_values else ("",)
