"""The rows of a CSV or TSV file of other people: none is merged with another, none is lost."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

CSV_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class DelimitedRow:
    """A row, and the lines of the file that it stands on, from 1."""

    cells: list[str]
    first_line: int
    last_line: int

    @property
    def where(self) -> str:
        """Such as "line 7"."""
        if self.first_line == self.last_line:
            return f"line {self.first_line}"
        return f"lines {self.first_line} to {self.last_line}"


def read_delimited(text: str, has_tabs: bool) -> Iterator[DelimitedRow]:
    """The rows of a table, its header first; empty lines are none.

    TSV (`has_tabs`) knows no quotation: a line is a row, whatever marks it holds, and only a cell
    in which a writer doubled them loses those that it put around it. In CSV a quoted cell may hold
    line ends. Raises `csv.Error` where its quotation swallows what looks like a row, with the line
    on which it opens: a transcript that begins with a quotation mark does so, and utterances would
    be merged.
    """
    # Split as the csv module counts lines; str.splitlines splits at other characters too.
    lines = list(io.StringIO(text, newline=""))
    if has_tabs:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        delimiter = "\t"
    else:
        # As Excel saves it, the delimiter hangs on the language.
        header = lines[0] if lines else ""
        delimiter = max(CSV_DELIMITERS, key=header.count)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)

    width = 0
    last_line = 0
    while True:
        first_line = last_line + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise csv.Error(f"line {first_line}: {error}") from error

        last_line = reader.line_num
        if not cells:
            continue
        width = width or len(cells)
        swallowed = lines[first_line:last_line]
        if swallowed and _only_first_is_broken(cells):
            # The last of its lines ends a row that is whole, and the first one may begin one.
            swallowed = [lines[first_line - 1].lstrip('"'), *swallowed[:-1]]
        is_broken = last_line > first_line and len(cells) != width
        if is_broken or _hold_a_row(swallowed, delimiter, width):
            raise csv.Error(
                f"line {first_line}: a quotation opens there and takes the lines up to {last_line} "
                'into one cell; close it, or write the mark in a quoted cell twice ("")'
            )
        if has_tabs:
            cells = [_without_marks(cell) for cell in cells]
        yield DelimitedRow(cells, first_line, last_line)


def _only_first_is_broken(cells: list[str]) -> bool:
    """Whether the line breaks of a row are those of its first cell."""
    broken = ["\n" in cell or "\r" in cell for cell in cells]
    return broken[0] and not any(broken[1:])


def _without_marks(cell: str) -> str:
    """The cell of a TSV without the marks that pandas or R put around it, doubling those in it."""
    inner = cell[1:-1]
    is_quoted = len(cell) > 2 and cell[0] == cell[-1] == '"'
    if is_quoted and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def _hold_a_row(lines: list[str], delimiter: str, width: int) -> bool:
    """Whether one of these lines, by itself, has as many cells as the table's rows."""
    for line in lines:
        cells = next(csv.reader([line], delimiter=delimiter), [])
        if len(cells) == width:
            return True
    return False
