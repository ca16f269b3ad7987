"""A row of a manifest from the values of a record: converted, checked, completed."""

import json
import math
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import msgspec
import pyarrow as pa

from ser.corpus.people import one_spelling
from ser.corpus.schema import SCHEMA

from .reading import Problem, Reading

# Taken from the files themselves, whatever a table says.
MEASURED = ("audio_sha256", "text_sha256", "duration")

# What is compared between the parts of a fold.
COMPARED = ("session", "dialogue", "speaker")

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
    where: str = "",
    need: str = "audio",
) -> dict[str, Any] | None:
    """Add a row of these `values`, by the manifest's columns, to a reading; None if it is wrong.

    A wrong value, or a record without the column that it `need`s, is a problem of that `place`. So
    is a `ValueError` that `values` raises while it is read. Without an id, the row takes that of
    its audio path, and without a dialogue it is a dialogue by itself.
    """
    row: dict[str, Any] = {"where": where}
    try:
        for column, value in values:
            if value is not None:
                row[column] = _converted(column, value)
        if need not in row:
            raise ValueError(f"has no {need}")
    except ValueError as error:
        reason = f"{where}: {error}" if where else str(error)
        reading.problems.append(Problem(None, place, reason))
        return None

    if "audio" in row:
        row["audio"] = row["audio"].removeprefix("./")
        if "id" not in row:
            row["id"] = _id_of(row["audio"])
            row["id_is_path"] = True
    row.setdefault("dialogue", row["id"])
    if "gender" in row:
        row["gender"] = GENDERS.get(row["gender"].lower())

    reading.rows.append(row)
    return row


def _id_of(audio: str) -> str:
    """The audio path without its ending; empty if it names nothing."""
    if not audio.strip("./"):
        return ""
    return str(PurePosixPath(audio).with_suffix(""))


def _converted(column: str, value: Any) -> Any:
    """The value in the type of its column. Raises `ValueError`, which says what is expected."""
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
        turn = int(value)
        if not 0 <= turn <= MAX_TURN:
            raise ValueError
        return turn

    if kind == pa.float64():
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
        return number

    text = str(value)
    text.encode()  # raises for half a surrogate pair
    return one_spelling(text) if column in COMPARED else text


def _expected(column: str) -> str:
    if column == "votes":
        return 'JSON such as [["ang"], ["neu", "sad"]]'
    if column == "turn":
        return "a number from 0"
    if SCHEMA.field(column).type == pa.string():
        return "valid Unicode"
    return "a number"
