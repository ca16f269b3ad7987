"""A CSV or TSV of numbers, an utterance a line: which column names the line, and which are values.

pandas, R, Excel and openSMILE write it in different ways. What could be taken for a feature and is
none, such as an index, is refused.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from ser.corpus.delimited import DelimitedRow, read_delimited
from ser.corpus.headings import column_of, unit_of
from ser.corpus.table_file import is_missing
from ser.corpus.times import seconds_of, with_unit
from ser.disk.text import read_text
from ser.errors import StoreError

# What openSMILE writes beside the name of an utterance: where it begins and ends.
PLACES = {"start", "end", "frametime", "frameindex"}

# Rows from which a column among others counts them, and does not look so by chance.
LONG_COUNT = 5

# Columns of a manifest: numbers in them are codes of somebody's classes and people.
NO_QUANTITIES = {"label", "speaker", "session", "dialogue", "turn", "gender", "votes", "text"}

# What openSMILE's program calls the column of the names, in quotes of its own.
SMILE_NAME = "name"


@dataclass(frozen=True)
class FeatureTable:
    """The values of a table, and what names its lines."""

    values: npt.NDArray[np.float64]
    """`[rows, dim]`."""
    ids: list[str] | None
    """Of each row; None if no column names it."""
    ids_are_paths: bool
    """Whether the ids come from the paths of audio files."""
    places: list[tuple[float, float | None]] | None = None
    """Where each row begins and ends in its file, in seconds, if columns start and end say it."""


def read_feature_table(path: Path, has_header: bool = True) -> FeatureTable:
    """Read a table. Without `has_header` its first line is a row.

    A column called id, or one of audio paths, names the rows. A first line of numbers is a row,
    unless they count up: those may be the numbers of the columns, as pandas writes them. Raises
    `StoreError` for what may be an index, and for what is no number.
    """
    rows = read_delimited(read_text(path), has_tabs=path.suffix.lower() == ".tsv")
    first = next(rows, None)
    if first is None:
        raise StoreError(f"{path}: is empty; write a line of numbers for each utterance")

    width = len(first.cells)
    headings = [f"column {number}" for number in range(1, width + 1)]
    is_header = has_header and not _is_row(path, first.cells)
    if is_header:
        headings = [heading.strip() for heading in first.cells]
        _check_named(path, headings)
    else:
        rows = chain([first], rows)

    key = _key_column(headings) if is_header else None
    _check_quantities(path, headings)
    value_columns = _value_columns(headings, key)
    if not value_columns:
        raise StoreError(f"{path}: has no column of values ({', '.join(headings)})")

    start, end = _place_columns(headings) if key is not None else (None, None)
    ids = []
    places = []
    values = []
    for row in _whole_rows(path, rows, width):
        if key is not None:
            ids.append(_id_of(headings[key], row.cells[key]))
        if start is not None and end is not None:
            begin = _time(path, row, headings, start) or 0.0
            places.append((begin, _time(path, row, headings, end)))
        values.append(_numbers(path, row, headings, value_columns))

    if not values:
        raise StoreError(f"{path}: has headings and no row; write a line for each utterance")
    table = np.stack(values)
    if not is_header or len(values) > 2:
        _check_no_index(path, [headings[column] for column in value_columns], table)
    is_id = key is not None and column_of(headings[key]) == "id"
    return FeatureTable(
        table, None if key is None else ids, key is not None and not is_id, places or None
    )


def _is_row(path: Path, cells: list[str]) -> bool:
    """Whether a first line is a row. Raises `StoreError` if it may be the numbers of columns."""
    numbers = []
    for cell in cells:
        number = _number(cell)
        if number is None:
            return False
        numbers.append(number)

    if _counts_up(np.array(numbers)):
        raise StoreError(
            f"{path}: its first line is {', '.join(cells[:3])}, …: the numbers of the columns, or "
            "a row of features; remove the line, or say --no-header if it is a row"
        )
    return True


def _counts_up(numbers: npt.NDArray[np.float64]) -> bool:
    """Whether these are whole numbers, each one more than the last."""
    whole = np.equal(np.mod(numbers, 1), 0).all()
    return bool(whole and (np.diff(numbers) == 1).all())


def _check_named(path: Path, headings: list[str]) -> None:
    """Raise `StoreError` for a column without a name, or named as an index."""
    for number, heading in enumerate(headings, 1):
        has_no_name = not heading or heading.startswith("Unnamed:")
        if has_no_name or heading.casefold() in ("index", "level_0"):
            lack = "has no name" if has_no_name else f"is called {heading}"
            raise StoreError(
                f"{path}: column {number} {lack}, and may be the index of a table; call it id if "
                "it holds the ids, or save the table without it (in pandas index=False)"
            )


def _check_quantities(path: Path, headings: list[str]) -> None:
    """Raise `StoreError` for a column that says who speaks or what is felt, if in numbers."""
    for heading in headings:
        if column_of(heading) in NO_QUANTITIES:
            raise StoreError(
                f"{path}: the column {heading} is no feature, but the {column_of(heading)} of the "
                "utterances; leave it out, or call it otherwise if it is one"
            )


def _check_no_index(path: Path, headings: list[str], table: npt.NDArray[np.float64]) -> None:
    """Raise `StoreError` if one of several columns `[rows, dim]` counts the rows.

    The first and the last may count by other steps than one, and down.
    """
    last = len(headings) - 1
    for number, heading in enumerate(headings):
        column = table[:, number]
        if number in (0, last):
            counts = _counts_by_steps(column)
        else:
            counts = len(column) >= LONG_COUNT and _counts_up(column)
        if last > 0 and counts:
            raise StoreError(
                f"{path}: a column of it counts the rows ({heading}), and may be an index; give "
                "the columns names, and call it id if it holds the ids, or leave it out"
            )


def _counts_by_steps(column: npt.NDArray[np.float64]) -> bool:
    """Whether whole numbers rise or fall by one step."""
    steps = np.diff(column)
    is_whole = np.equal(np.mod(column, 1), 0).all()
    is_even = len(steps) > 0 and steps[0] != 0 and (steps == steps[0]).all()
    # Two numbers always have one step.
    return bool(is_whole and is_even and (len(column) > 2 or steps[0] == 1))


def _key_column(headings: list[str]) -> int | None:
    """The place of the column that names the rows, if any: the id, else the audio file."""
    columns = [column_of(heading) for heading in headings]
    for name in ("id", "audio"):
        if name in columns:
            return columns.index(name)

    names = [heading.casefold() for heading in headings]
    is_smile = SMILE_NAME in names and not PLACES.isdisjoint(names)
    return names.index(SMILE_NAME) if is_smile else None


def _value_columns(headings: list[str], key: int | None) -> list[int]:
    """The places of the columns that hold values."""
    columns = []
    for number, heading in enumerate(headings):
        if number != key and not (key is not None and _says_where(heading)):
            columns.append(number)
    return columns


def _says_where(heading: str) -> bool:
    """Whether a column beside the one that names the rows says which audio they are of."""
    return heading.casefold() in PLACES or column_of(heading) in ("audio", "start", "end")


def _place_columns(headings: list[str]) -> tuple[int | None, int | None]:
    """The columns that say where a row begins and ends, if there are both."""
    columns = [column_of(heading) for heading in headings]
    if "start" not in columns or "end" not in columns:
        return None, None
    return columns.index("start"), columns.index("end")


def _time(path: Path, row: DelimitedRow, headings: list[str], column: int) -> float | None:
    cell = row.cells[column]
    if is_missing(cell) or cell.strip().casefold() in ("nat", "nan"):
        return None
    try:
        return seconds_of(with_unit(cell, unit_of(headings[column])))
    except ValueError:
        fault = f"{cell!r} in column {headings[column]!r} is not a time"
        raise StoreError(f"{path}: {row.where}: {fault}; write seconds, such as 1.5") from None


def _id_of(heading: str, cell: str) -> str:
    if column_of(heading) == "id":
        return cell.strip()
    name = cell.strip().strip("'").replace("\\", "/")
    if column_of(heading) == "audio":
        return str(PurePosixPath(name).with_suffix("")) if name else ""
    return name


def _whole_rows(path: Path, rows: Iterable[DelimitedRow], width: int) -> Iterator[DelimitedRow]:
    for row in rows:
        if len(row.cells) != width:
            fault = f"{row.where} has {len(row.cells)} columns where the first line has {width}"
            raise StoreError(f"{path}: {fault}; correct it")
        yield row


def _numbers(
    path: Path, row: DelimitedRow, headings: list[str], columns: list[int]
) -> npt.NDArray[np.float64]:
    cells = [row.cells[column] for column in columns]
    try:
        # Most tables are plain numbers, and have millions of them.
        return _plain_numbers(cells)
    except ValueError:
        pass

    numbers = []
    for column in columns:
        number = _number(row.cells[column])
        if number is None:
            raise StoreError(
                f"{path}: {row.where}: {row.cells[column]!r} in column {headings[column]!r} is not "
                "a number; correct it, or call the column id if it holds the ids"
            )
        numbers.append(number)
    return np.array(numbers)


def _plain_numbers(cells: list[str]) -> npt.NDArray[np.float64]:
    """The numbers of cells with decimal points. Raises `ValueError` if one is none."""
    # float() takes 1_0 for 10.
    if "_" in "".join(cells):
        raise ValueError
    return np.array([float(cell) for cell in cells])


def _number(cell: str) -> float | None:
    """The number of a cell, with a decimal point or comma; None if it is none."""
    text = cell if "." in cell else cell.replace(",", ".")
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None
