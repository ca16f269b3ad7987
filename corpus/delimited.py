"""The rows of a CSV or TSV file of other people: none is merged with another, none is lost."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

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


def read_plain_columns(text: str, has_tabs: bool) -> dict[str, list[str | None]] | None:
    """The columns of a table that quotes nothing, by heading; None in a cell that is blank.

    It gives what `read_delimited` gives, in a tenth of the time, and None for a table that only
    that can read: one with quotation marks, rows of other widths, or blanks around its cells.
    """
    from pyarrow import ArrowInvalid, csv

    header = text.partition("\n")[0].rstrip("\r")
    delimiter = _delimiter_of(header, has_tabs)
    headings = [heading.strip() for heading in header.split(delimiter)]
    is_odd = '"' in text or f"{delimiter} " in text or "\n " in text
    has_other_ends = text.count("\r") != text.count("\r\n")
    if is_odd or has_other_ends or not header or len(set(headings)) < len(headings):
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

    columns = {}
    for heading, column in zip(headings, table.columns, strict=True):
        cells = column.to_pylist()
        columns[heading] = [cell if cell.strip() else None for cell in cells]
    return columns


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
            raise csv.Error(f"line {first_line}: {error}") from error

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
    has the cells of a whole row, too. Where each text is quoted no row begins without a mark.
    """
    is_row = []
    for line in lines:
        begins_as_row = line.startswith('"') or not quotes_headings
        is_row.append(line.count(delimiter) + 1 >= width and begins_as_row)

    return any(is_row[1:-1]) or (is_row[0] and is_row[-1])
