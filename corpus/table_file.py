"""A table of other people, row by row: CSV, TSV, JSONL or Parquet.

Whatever reads a table goes through here: corpora, `--text`, audformat, folds, imports, `ser predict
--table`. No row is merged with another (see `delimited`), and what is missing is missing in every
format: an empty cell of a CSV, `null` and `NaN` of a JSONL and of Parquet.
"""

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from ser.disk.memory import name_what_does_not_fit
from ser.disk.parquet import read_parquet
from ser.disk.read import LARGE, read_named
from ser.disk.text import read_text
from ser.errors import CorpusError, WrongUse

from .delimited import DelimitedRow, read_delimited
from .headings import check_headings

TABLE_ENDINGS = {".csv", ".tsv", ".jsonl", ".parquet"}


@dataclass(frozen=True)
class TableRow:
    """A row, and where it stands."""

    where: str
    """Such as "line 7"."""
    values: dict[str, Any]
    """By the table's own headings, without those that are missing."""
    fault: str = ""
    """Why it is no row, in one sentence; empty if it is one."""


@dataclass(frozen=True)
class TableFile:
    """A table, read."""

    headings: list[str]
    """In the file's order, without blanks around them."""
    rows: list[TableRow]
    notes: list[str] = field(default_factory=list)
    """What is odd, but can be read."""


def read_table_file(path: Path) -> TableFile:
    """Read a table.

    Raises `WrongUse` if there is no file of a known kind, `CorpusError` if it cannot be read as its
    ending says.
    """
    ending = path.suffix.lower()
    if ending not in READERS:
        raise WrongUse(
            f"{path} is not a table that ser can read; "
            f"its name should end in {', '.join(sorted(TABLE_ENDINGS))}"
        )
    if not path.is_file():
        raise WrongUse(f"{path} is not a file; give a CSV, TSV, Parquet or JSONL file")

    try:
        with name_what_does_not_fit(path, CorpusError):
            return READERS[ending](path)
    except CorpusError:
        raise
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{path} cannot be read as {ending[1:]}: {reason}") from error


def _read_parquet(path: Path) -> TableFile:
    table = read_parquet(read_named(path, LARGE))
    headings = [name.strip() for name in table.column_names]
    check_headings(headings)

    rows = []
    for number, values in enumerate(table.to_pylist(), 1):
        rows.append(TableRow(f"row {number}", _present(values.items())))
    return TableFile(headings, rows)


def _read_jsonl(path: Path) -> TableFile:
    rows = []
    # In the order of their first appearance; a set has none.
    headings: dict[str, None] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            row = _json_row(f"line {number}", line)
            headings.update(dict.fromkeys(row.values))
            rows.append(row)
    return TableFile(list(headings), rows)


def _json_row(where: str, line: str) -> TableRow:
    try:
        values = json.loads(line, object_pairs_hook=_checked_object)
    except (json.JSONDecodeError, RecursionError):
        return TableRow(where, {}, "is not JSON")
    except ValueError as error:  # two columns for one thing, or a number of thousands of digits
        return TableRow(where, {}, str(error))

    if not isinstance(values, dict):
        return TableRow(where, {}, "is not a JSON object")
    return TableRow(where, _present(values.items()))


def _checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    check_headings(name for name, _ in pairs)
    return dict(pairs)


def _read_delimited(path: Path) -> TableFile:
    lines = list(read_delimited(read_text(path), has_tabs=path.suffix.lower() == ".tsv"))
    if not lines:
        return TableFile([], [])

    headings = [heading.strip() for heading in lines[0].cells]
    check_headings(headings)

    rows = []
    for line in lines[1:]:
        if len(line.cells) != len(headings):
            fault = f"has {len(line.cells)} columns where the header has {len(headings)}"
            rows.append(TableRow(line.where, {}, fault))
        else:
            pairs = zip(headings, line.cells, strict=True)
            rows.append(TableRow(line.where, _present(pairs)))
    return TableFile(headings, rows, _count_lines(path, lines[1:]))


def _count_lines(path: Path, rows: list[DelimitedRow]) -> list[str]:
    """How many rows stand on how many lines, if those are not the same."""
    on_several_lines = [row.where for row in rows if row.first_line != row.last_line]
    if not on_several_lines:
        return []
    return [
        f"{path.name}: {len(rows)} rows on {rows[-1].last_line} lines: {len(on_several_lines)} "
        f"hold line breaks, such as {on_several_lines[0]}"
    ]


def _present(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The values that are there, by heading."""
    values = {}
    for heading, value in pairs:
        if not is_missing(value):
            values[heading.strip()] = value
    return values


def is_missing(value: Any) -> bool:
    """Whether a value is none: null, NaN, an empty or a blank text.

    A word such as `NA` is a text.
    """
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return not value.strip()
    return value is None


def text_of(value: Any) -> str:
    """The text of a value that names something: of 2.0 it is "2".

    A column of whole numbers holds 2.0 where another of its values is missing, and the decimal 2.00
    where a database wrote it.
    """
    is_number = isinstance(value, float | Decimal) and math.isfinite(value)
    if is_number and value == int(value):
        value = int(value)
    return str(value)


READERS = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
