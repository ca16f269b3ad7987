"""CSV files for spreadsheets, in which numbers have the decimal mark of their reader's language."""

import csv
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Protocol

# By the decimal mark, what parts the cells: as Excel reads and saves it.
DELIMITERS = {".": ",", ",": ";"}


class Sink(Protocol):
    """What is written to: an open text file, or one in memory."""

    def write(self, text: str, /) -> object: ...


class Sheet:
    """Writes a CSV row by row."""

    def __init__(self, sink: Sink, decimal: str = ".", line_end: str = "\n") -> None:
        self.decimal = decimal
        self._writer = csv.writer(sink, delimiter=DELIMITERS[decimal], lineterminator=line_end)

    def write_row(self, cells: Iterable[object]) -> None:
        """Write a row of texts and numbers."""
        self._writer.writerow([self._cell(cell) for cell in cells])

    def _cell(self, cell: object) -> object:
        is_fraction = isinstance(cell, Real) and not isinstance(cell, Integral)
        return self.number(str(cell)) if is_fraction else cell

    def number(self, text: str) -> str:
        """A number that is written with a point, with the decimal mark of this sheet.

        >>> import io
        >>> Sheet(io.StringIO(), ",").number("-1.5e-07")
        '-1,5e-07'
        """
        return text.replace(".", self.decimal)
