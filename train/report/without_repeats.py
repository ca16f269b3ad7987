"""A table without the columns in which all rows are alike: its note says their value once."""

from dataclasses import replace

from .formats import NO_VALUE
from .table import Table, joined


def without_repeats(table: Table) -> Table:
    """The table without the columns that say the same, or nothing, in every row.

    The last column that names the rows stays. So does a table of one row, and one of which nothing
    but names would be left.
    """
    if len(table.rows) < 2:
        return table

    repeated: dict[str, list[str]] = {}
    for position, heading in enumerate(table.headings):
        if position == table.names - 1:
            continue
        texts = {line[position] for line in table.texts}
        if len(texts) == 1:
            repeated.setdefault(texts.pop(), []).append(heading)

    would_be_left_out = sum(len(headings) for headings in repeated.values())
    if would_be_left_out >= len(table.headings) - 1:
        return table

    said = []
    left_out: list[str] = []
    for text, headings in repeated.items():
        left_out += headings
        value = "no value" if text == NO_VALUE else text
        said.append(f"{', '.join(headings)}: {value}")

    rows = []
    for row in table.rows:
        rows.append({heading: row[heading] for heading in row if heading not in left_out})
    names = [heading for heading in table.headings[: table.names] if heading not in left_out]
    words = f"In every row, {'; '.join(said)}." if said else ""
    return replace(table, rows=rows, note=joined(words, table.note), names=len(names))
