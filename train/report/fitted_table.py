"""A table as lines of text that fit a width, such as that of a terminal.

A column is as wide as its texts while there is room. Where there is not, words go to a further
line, then the end points of an interval stand below their value. Columns for which there is still
no room make a second table below, with the same names of the rows; where that spares tables, a
row's name stands on a line of its own, above its values.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from textwrap import wrap

from ser.errors import printable

from .table import Table

GAP = 2  # letters between two columns
COMFORTABLE = 18  # letters that a column of words keeps while numbers can still be broken
SHORTEST = 6  # letters in a line of a word that is broken
INDENT = "  "  # of the further lines of a text


@dataclass(frozen=True)
class Column:
    """One column as texts: of numbers, which stand to the right, or of words."""

    heading: str
    texts: Sequence[str]
    numbers: bool

    @cached_property
    def natural(self) -> int:
        """Letters that it takes if no text is broken; its heading may be, between words."""
        heading = max(map(len, self.heading.split()), default=0)
        return max(heading, *map(len, self.texts))

    @cached_property
    def least(self) -> int:
        """Letters that it takes if texts are broken wherever they may be, but in no word."""
        longest = max(map(len, self.heading.split()), default=0)
        for text in self.texts:
            pieces = _pieces(text) if self.numbers else text.split()
            # The further words of a text are indented.
            longest = max([longest, *(len(piece) for piece in pieces[:1])])
            indent = 0 if self.numbers else len(INDENT)
            longest = max([longest, *(len(piece) + indent for piece in pieces[1:])])
        return longest

    def broken(self, text: str, width: int) -> list[str]:
        """A text of the column as lines of at most `width` letters."""
        if len(text) <= width:
            return [text]
        if not self.numbers:
            return wrap(text, width, subsequent_indent=INDENT, break_on_hyphens=False)
        lines: list[str] = []
        for piece in _pieces(text):
            lines += wrap(piece, width, break_on_hyphens=False)
        return lines


def _pieces(number: str) -> list[str]:
    """A value, and the interval or deviation that may stand below it.

    >>> _pieces("50.00 [40.00, 60.00]"), _pieces("50.00 ± 1.10"), _pieces("12,345")
    (['50.00', '[40.00, 60.00]'], ['50.00', '± 1.10'], ['12,345'])
    """
    return re.split(r" (?=\[|±)", number)


def fitted(table: Table, width: int) -> str:
    """The table in lines of at most `width` letters, as several below each other if need be."""
    columns = _columns(table)
    names = columns[: table.names]
    beside = _parted(names, columns[table.names :], width)
    below = _parted([], columns[table.names :], width - len(INDENT))

    spares_tables = len(below) < len(beside)
    spares_lines = len(below) == len(beside) and _lines_of_a_name(columns, names, width) > 2
    if spares_tables or spares_lines:
        return "\n\n".join(_lines_below_names(names, others, width) for others in below)
    return "\n\n".join(_lines([*names, *others], width) for others in beside)


def without_what_has_no_room(
    table: Table, width: int, spare: Sequence[str], at_need: Sequence[str]
) -> tuple[Table, list[str]]:
    """The table without the columns for which rows have no room, and their headings.

    Columns of `spare` are left out, the first of them first, so that a row is one line; those of
    `at_need` only where the values have no room on one line below the row's name either.
    """
    for number in range(len(spare) + 1):
        smaller, left_out = _without(table, spare[:number])
        if _fits_beside_names(smaller, width):
            return smaller, left_out

    order = [*spare, *at_need]
    for number in range(len(order) + 1):
        smaller, left_out = _without(table, order[:number])
        if _fits_below_names(smaller, width):
            break
    return smaller, left_out


def _without(table: Table, headings: Sequence[str]) -> tuple[Table, list[str]]:
    """The table without these columns, and those of them that it had."""
    rows = []
    for row in table.rows:
        rows.append({heading: row[heading] for heading in row if heading not in headings})
    left_out = [heading for heading in headings if heading in table.headings]
    return replace(table, rows=rows), left_out


def _fits_beside_names(table: Table, width: int) -> bool:
    return _total([column.natural for column in _columns(table)]) <= width


def _fits_below_names(table: Table, width: int) -> bool:
    values = _columns(table)[table.names :]
    return _total([column.natural for column in values]) <= width - len(INDENT)


def _columns(table: Table) -> list[Column]:
    columns = []
    for position, shown in enumerate(table.shown_columns):
        texts = [printable(" ".join(line[position].split())) for line in table.texts]
        columns.append(Column(printable(shown.heading), texts, table.to_the_right(shown)))
    return columns


def _parted(names: Sequence[Column], others: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns of each table that is needed, beside the names of the rows."""
    tables: list[list[Column]] = [[]]
    for column in others:
        together = [*names, *tables[-1], column]
        if tables[-1] and _total([other.least for other in together]) > width:
            tables.append([])
        tables[-1].append(column)
    return tables


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """The letters of each column: texts are broken before numbers, and words last."""
    widths = [column.natural for column in columns]
    texts = [place for place, column in enumerate(columns) if not column.numbers]

    floors = [max(column.least, min(column.natural, COMFORTABLE)) for column in columns]
    _narrow(widths, texts, floors, width)

    if _total(widths) > width:
        widths = [column.least if column.numbers else column.natural for column in columns]
        _narrow(widths, texts, [column.least for column in columns], width)

    _narrow(widths, range(len(columns)), [SHORTEST] * len(columns), width)
    _give_to_headings(widths, columns, width)
    return widths


def _give_to_headings(widths: list[int], columns: Sequence[Column], width: int) -> None:
    """Widen columns to their heading on one line, as far as there is room."""
    for place, column in enumerate(columns):
        missing = len(column.heading) - widths[place]
        if missing > 0 and _total(widths) + missing <= width:
            widths[place] += missing


def _narrow(widths: list[int], places: Sequence[int], floors: Sequence[int], width: int) -> None:
    """Take letters from the widest of these columns until all fit, none below its floor."""
    while _total(widths) > width:
        above_floor = [place for place in places if widths[place] > floors[place]]
        if not above_floor:
            return
        widest = max(above_floor, key=lambda place: widths[place])
        widths[widest] -= 1


def _lines_of_a_name(columns: Sequence[Column], names: Sequence[Column], width: int) -> int:
    """The most lines that the name of a row takes beside its values."""
    widths = _widths(columns, width)
    lines = [1]
    for name, letters in zip(names, widths, strict=False):
        lines += [len(name.broken(text, letters)) for text in name.texts]
    return max(lines)


def _lines(columns: Sequence[Column], width: int) -> str:
    """One table: its headings, a rule, and its rows."""
    widths = _widths(columns, width)
    lines = _heading_lines(columns, widths)
    for row in range(len(columns[0].texts)):
        lines += _row_lines(columns, widths, row)
    return "\n".join(lines)


def _lines_below_names(names: Sequence[Column], others: Sequence[Column], width: int) -> str:
    """One table whose rows have their names on a line above their values."""
    widths = _widths(others, width - len(INDENT))
    lines = [" / ".join(name.heading for name in names)]
    lines += [INDENT + line for line in _heading_lines(others, widths)]
    for row in range(len(others[0].texts)):
        text = " / ".join(name.texts[row] for name in names)
        lines += wrap(text, width, subsequent_indent=INDENT * 2, break_on_hyphens=False)
        lines += [INDENT + line for line in _row_lines(others, widths, row)]
    return "\n".join(lines)


def _heading_lines(columns: Sequence[Column], widths: Sequence[int]) -> list[str]:
    """The headings, each at the rule below them, and the rule."""
    headings = []
    for column, letters in zip(columns, widths, strict=True):
        headings.append(wrap(column.heading, letters, break_on_hyphens=False) or [""])

    depth = max(map(len, headings))
    at_the_rule = [[""] * (depth - len(heading)) + heading for heading in headings]
    lines = _side_by_side(columns, widths, at_the_rule)
    lines.append((" " * GAP).join("-" * letters for letters in widths))
    return lines


def _row_lines(columns: Sequence[Column], widths: Sequence[int], row: int) -> list[str]:
    cells = []
    for column, letters in zip(columns, widths, strict=True):
        cells.append(column.broken(column.texts[row], letters))
    return _side_by_side(columns, widths, cells)


def _side_by_side(
    columns: Sequence[Column], widths: Sequence[int], cells: Sequence[Sequence[str]]
) -> list[str]:
    """The lines of each column's cell beside those of the others."""
    lines = []
    for number in range(max(map(len, cells))):
        pieces = []
        for column, letters, cell in zip(columns, widths, cells, strict=True):
            text = cell[number] if number < len(cell) else ""
            pieces.append(text.rjust(letters) if column.numbers else text.ljust(letters))
        lines.append((" " * GAP).join(pieces).rstrip())
    return lines
