"""A row of a manifest from the values of a record: converted, checked, completed."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec
import pyarrow as pa

from ser.corpus.people import one_spelling
from ser.corpus.schema import SCHEMA
from ser.corpus.table_file import is_missing, text_of
from ser.corpus.times import seconds_of

from .reading import Problem, Reading

# Taken from the files themselves, whatever a table says.
MEASURED = ("audio_sha256", "text_sha256", "duration")

# What is compared between the parts of a fold.
COMPARED = ("session", "dialogue", "speaker")

# What has one spelling, however it is written.
NAMES = (*COMPARED, "label", "gender")

# What stands in a column of numbers where there is none; in a column of texts these are words.
NO_NUMBER = {"nan", "na", "n/a", "null", "none", "<na>"}

# In seconds, whatever their notation.
TIMES = ("start", "end")

# A gender that is none of these is unknown.
GENDERS = {
    "f": "F",
    "female": "F",
    "w": "F",
    "weiblich": "F",
    "m": "M",
    "male": "M",
    "männlich": "M",
}

MAX_TURN = (1 << 31) - 1  # of an int32


def add_row(
    reading: Reading,
    values: Iterable[tuple[str, Any]],
    place: str,
    line: str = "",
    needs: Sequence[str] = ("audio",),
) -> dict[str, Any] | None:
    """Add a row of these `values`, by the manifest's columns, to a reading; None if it is wrong.

    Values that are missing are left out.

    A wrong value, or a record without a column that it `needs`, is a problem of that `place`. So
    is a `ValueError` that `values` raises while it is read. Without an id, the row takes that of
    its audio path, and without a dialogue it is a dialogue by itself.
    """
    row: dict[str, Any] = {"line": line}
    try:
        for column, value in values:
            if not is_missing(value):
                row[column] = _converted(column, value)
        for column in needs:
            if column not in row:
                raise ValueError(f"has no {column}")
    except ValueError as error:
        reason = f"{line}: {error}" if line else str(error)
        reading.problems.append(Problem(None, place, reason))
        return None

    if "audio" in row:
        row["audio"] = row["audio"].removeprefix("./")
        if "id" not in row:
            row["id"] = _id_of(row["audio"])
            row["id_is_path"] = True
    row = {column: value for column, value in row.items() if value is not None}
    row.setdefault("dialogue", row["id"])
    if "gender" in row:
        row["gender"] = GENDERS.get(row["gender"].lower())

    reading.rows.append(row)
    return row


def _id_of(audio: str) -> str:
    """The audio path without its ending; empty if it names nothing."""
    path = audio.replace("\\", "/")
    if not path.strip("./"):
        return ""
    return str(PurePosixPath(path).with_suffix(""))


def _converted(column: str, value: Any) -> Any:
    """The value in the type of its column; None for a word that says that there is no number.

    Raises `ValueError`, which says what is expected.
    """
    try:
        return _convert(column, value)
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.ValidationError):
        shown = ascii(value)[:60]
        raise ValueError(f"the {column} {shown} is not {_expected(column)}") from None


def _convert(column: str, value: Any) -> Any:
    kind = SCHEMA.field(column).type
    if column == "votes":
        votes = json.loads(value) if isinstance(value, str) else value
        return msgspec.convert(votes, list[list[str]])

    # The text of one of these would be taken for a text.
    if isinstance(value, bytes | list | tuple | dict):
        raise TypeError

    if kind == pa.int32():
        return _turn(value)
    if column in TIMES:
        return time_of(value)
    if kind == pa.float64():
        return _number(value)

    if isinstance(value, float) and math.isinf(value):
        raise ValueError

    text = text_of(value)
    text.encode()  # raises for half a surrogate pair
    if column in NAMES:
        return one_spelling(text)
    return text.strip() if column == "id" else text


def _number(value: Any) -> float | None:
    """A number, with a decimal point or, as Excel writes it in many languages, a comma."""
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        value = value.strip()
        if value.casefold() in NO_NUMBER:
            return None
        if "_" in value:  # which float() takes
            raise ValueError
        if "." not in value:
            value = value.replace(",", ".")

    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def time_of(value: Any) -> float | None:
    """A time in seconds; None for a word that says that there is none.

    Raises `ValueError` or `TypeError` for what is no time.
    """
    # pandas' word for a time that is missing.
    if isinstance(value, str) and value.strip().casefold() in {*NO_NUMBER, "nat"}:
        return None
    return seconds_of(value)


def _turn(value: Any) -> int | None:
    number = _number(value)
    if number is None:
        return None
    if not number.is_integer() or not 0 <= number <= MAX_TURN:
        raise ValueError
    return int(number)


def _expected(column: str) -> str:
    if column == "votes":
        return 'JSON such as [["ang"], ["neu", "sad"]]'
    if column == "turn":
        return "a whole number from 0"
    if column in TIMES:
        return "a time, such as 1.5 (seconds), 1500 ms or 00:00:01.5"
    if SCHEMA.field(column).type == pa.string():
        return "valid Unicode"
    return "a number"
