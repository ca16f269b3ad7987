"""The rows of a CSV or TSV file of other people: none is merged with another, none is lost."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

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

    TSV (`has_tabs`, or a CSV with tabs) knows no quotation: a line is a row, whatever marks it
    holds. In CSV a quoted cell may hold line ends. Raises `csv.Error` where its quotation swallows
    what looks like a row, with the line on which it opens: a transcript that begins with a
    quotation mark does so, and utterances would be merged.
    """
    # Split as the csv module counts lines; str.splitlines splits at other characters too.
    lines = list(io.StringIO(text, newline=""))
    header = lines[0] if lines else ""
    delimiter = _delimiter_of(header, has_tabs)
    quotes_headings = _quotes_all(header, delimiter)

    if delimiter == "\t":
        return _read_tabs(lines, quotes_headings)
    return _read_quoted(lines, delimiter, quotes_headings)


class CellColumns(Mapping[str, list[str | None]]):
    """The cells of a table by heading; None in a cell that is blank.

    A column is made a list when it is first asked for: most of a table may be numbers.
    """

    def __init__(self, cells: dict[str, pa.ChunkedArray | list[str]]) -> None:
        self._cells = cells
        self._lists: dict[str, list[str | None]] = {}

    def __getitem__(self, heading: str) -> list[str | None]:
        if heading not in self._lists:
            cells = self._cells[heading]
            texts = cells if isinstance(cells, list) else cells.to_pylist()
            self._lists[heading] = _without_blanks(texts)
        return self._lists[heading]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    def numbers(self, heading: str) -> np.ndarray | None:
        """A column as numbers `[n]`; None if one of its cells is none."""
        cells = self._cells[heading]
        try:
            if isinstance(cells, list):
                return np.fromiter(map(float, cells), float, len(cells))
            return cells.cast(pa.float64()).to_numpy()
        except (ValueError, pa.ArrowException):
            return None


def read_columns(text: str, has_tabs: bool) -> CellColumns | None:
    """The columns of a table by heading.

    It gives what `read_delimited` gives, in a tenth of the time, and None for a table that only
    that can read: one with cells on several lines, with rows of other widths, or with quotation
    marks and tabs.
    """
    header = text.partition("\n")[0].rstrip("\r")
    if not header:
        return None
    delimiter = _delimiter_of(header, has_tabs)
    is_plain = '"' not in text and f"{delimiter} " not in text and "\n " not in text
    has_other_ends = text.count("\r") != text.count("\r\n")
    if is_plain and not has_other_ends:
        return _read_plain(text, header, delimiter)
    if delimiter != "\t":
        return _read_lines(text, delimiter)
    return None


def _read_plain(text: str, header: str, delimiter: str) -> CellColumns | None:
    """The columns of a table that quotes nothing, and has no blanks around its cells."""
    from pyarrow import ArrowInvalid, csv

    headings = [heading.strip() for heading in header.split(delimiter)]
    if len(set(headings)) < len(headings):
        return None

    names = [str(number) for number in range(len(headings))]
    try:
        table = csv.read_csv(
            io.BytesIO(text.encode()),
            csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False),
            csv.ParseOptions(delimiter=delimiter, quote_char=False),
            csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    # Of a row of another width, and of half a surrogate pair.
    except (ArrowInvalid, UnicodeError):
        return None

    return CellColumns(dict(zip(headings, table.columns, strict=True)))


def _read_lines(text: str, delimiter: str) -> CellColumns | None:
    """The columns of a table that has each row on one line, whatever it quotes."""
    lines = list(io.StringIO(text, newline=""))
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True))
    except csv.Error:
        return None

    widths = set(map(len, rows))
    # A row of several lines is none here, and neither is an empty line.
    if len(rows) < len(lines) or len(widths) > 1:
        return None

    headings = [heading.strip() for heading in rows[0]]
    if len(set(headings)) < len(headings):
        return None
    if len(rows) == 1:
        return CellColumns({heading: [] for heading in headings})
    cells = map(list, zip(*rows[1:], strict=True))
    return CellColumns(dict(zip(headings, cells, strict=True)))


def _without_blanks(cells: list[str]) -> list[str | None]:
    """The cells, None where one is blank."""
    if all(map(str.strip, set(cells))):
        return list(cells)
    return [cell if cell.strip() else None for cell in cells]


def _delimiter_of(header: str, has_tabs: bool) -> str:
    """What parts the cells: as Excel saves it, it hangs on the language."""
    return "\t" if has_tabs else max(CSV_DELIMITERS, key=header.count)


def _quotes_all(header: str, delimiter: str) -> bool:
    """Whether all headings are quoted: then so is each text below them."""
    cells = header.strip("\r\n").split(delimiter)
    return all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)


def _read_tabs(lines: list[str], quotes_headings: bool) -> Iterator[DelimitedRow]:
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text:
            cells = [_without_writers_marks(cell, quotes_headings) for cell in text.split("\t")]
            yield DelimitedRow(cells, number, number)


def _without_writers_marks(cell: str, quotes_headings: bool) -> str:
    """A cell of a TSV without the quotation of a writer that quotes nevertheless.

    Such a writer (pandas, R) doubles the marks within a cell, or quotes an empty text (polars). All
    other marks belong to the text.
    """
    within = cell[1:-1]
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    if not is_quoted or '"' in within.replace('""', ""):
        return cell
    if within == "" or '""' in within or quotes_headings:
        return within.replace('""', '"')
    return cell


def _read_quoted(lines: list[str], delimiter: str, quotes_headings: bool) -> Iterator[DelimitedRow]:
    # Blanks before a cell would hide that it is quoted.
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    width = 0
    last_line = 0
    while True:
        first_line = last_line + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error)
            if reason == "unexpected end of data":
                reason = (
                    "a quotation opens there and is never closed; close it, or write the mark in a "
                    'quoted cell twice ("")'
                )
            raise csv.Error(f"line {first_line}: {reason}") from error

        last_line = reader.line_num
        if not cells:
            continue
        width = width or len(cells)
        of_row = lines[first_line - 1 : last_line]
        if len(of_row) > 1 and (
            len(cells) != width or _may_hold_rows(of_row, delimiter, width, quotes_headings)
        ):
            raise csv.Error(
                f"line {first_line}: a quotation opens there and takes the lines up to {last_line} "
                "into one cell, which may be rows; close it, write the mark in a quoted cell twice "
                '(""), or write the lines of the cell as one'
            )
        yield DelimitedRow(cells, first_line, last_line)


def _may_hold_rows(lines: list[str], delimiter: str, width: int, quotes_headings: bool) -> bool:
    """Whether the lines of one row look as if they were several rows.

    Behind the quoted cell the last line always has the rest of the row; it counts if the first line
    has the cells of a whole row, too. Where each text is quoted all rows begin alike: with a mark,
    or with a number.
    """
    is_row = []
    for line in lines:
        begins_alike = _beginning_of(line, delimiter) == _beginning_of(lines[0], delimiter)
        begins_as_row = begins_alike or not quotes_headings
        is_row.append(line.count(delimiter) + 1 >= width and begins_as_row)

    return any(is_row[1:-1]) or (is_row[0] and is_row[-1])


def _beginning_of(line: str, delimiter: str) -> str:
    """What a line begins with: a quoted cell, a number, or another text."""
    if line.startswith('"'):
        return "mark"
    first = line.partition(delimiter)[0].strip()
    return "number" if first.replace(".", "", 1).isdecimal() else "text"
