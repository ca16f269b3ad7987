"""Tables for a spreadsheet, with every digit that is worth keeping."""

import io
from numbers import Real
from typing import Any

from ser.corpus.sheet import Sheet

from .formats import harmless
from .table import Column, Table


def to_csv(table: Table, decimal: str = ".") -> str:
    """A line with the caption, then `rows_to_csv`."""
    sink = io.StringIO()
    Sheet(sink, decimal).write_row([harmless(table.caption)])
    return sink.getvalue() + rows_to_csv(table, decimal)


def rows_to_csv(table: Table, decimal: str = ".") -> str:
    """A line with the headings, then the rows.

    Numbers have a `decimal` point or comma.

    A value with an interval or a deviation takes a column for each of its numbers; a column without
    any value takes one.
    """
    sink = io.StringIO()
    sheet = Sheet(sink, decimal)

    headings = []
    for column in table.shown_columns:
        for part in _parts(table, column):
            headings.append(harmless(column.heading) + part)
    sheet.write_row(headings)

    for row in table.rows:
        texts: list[str] = []
        for column in table.shown_columns:
            value = row.get(column.heading)
            if isinstance(value, tuple):
                texts += [_exact_part(column, part, sheet) for part in value]
            else:
                missing = len(_parts(table, column)) - 1
                texts += [_exact(column, value, sheet), *[""] * missing]
        sheet.write_row(texts)
    return sink.getvalue()


def _exact_part(column: Column, part: float | None, sheet: Sheet) -> str:
    return _exact(column, part if part is None else float(part), sheet)


def _exact(column: Column, value: Any, sheet: Sheet) -> str:
    text = column.format.exact(value)
    return sheet.number(text) if isinstance(value, Real) else text


def _parts(table: Table, column: Column) -> tuple[str, ...]:
    """What is added to the column's heading for each of the columns that it takes."""
    has_values = table.first_value(column) is not None
    return column.format.parts if has_values else ("",)
