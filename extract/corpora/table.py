"""Any corpus as a table: CSV, TSV, Parquet or JSONL with an audio column.

Columns have the manifest's names, in any case, or those of `headings.ALIASES`; where none is called
audio, one of `headings.PATHS` is. Audio paths are relative to the table's folder.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ser.corpus.headings import column_of, path_heading, unit_of
from ser.corpus.manifest import Manifest
from ser.corpus.schema import SCHEMA
from ser.corpus.segments import segment_id
from ser.corpus.table_file import TableFile, TableRow, is_missing, read_table_file
from ser.corpus.times import with_unit
from ser.errors import CorpusError, WrongUse

from .admit import admit
from .odd_names import warn_of_odd_names
from .reading import Problem, Reading, rows_of
from .rows import MEASURED, TIMES, add_row, time_of

COLUMNS = [name for name in SCHEMA.names if name not in MEASURED]


def read_table(
    path: Path, need: Literal["id", "audio"] = "audio", columns: Sequence[str] = COLUMNS
) -> Reading:
    """Read these of the manifest's `columns` from a table file.

    Every row must have the column `need`, and an id if any row has one; where none has, its audio
    path names it. A bad row becomes a `Problem` with its line number.
    """
    reading = Reading(path.stem, path.parent, [], paths="inside" if need == "audio" else "unopened")
    table = read_table_file(path)
    if need == "audio":
        table = _with_audio_column(table)
    _refuse_embedded_audio(path, table)
    column_by_heading = {heading: column_of(heading) for heading in table.headings}
    needs = [need]
    if _has_values(table, "id"):
        needs = ["id", need]
    elif _has_values(table, "audio"):
        needs = ["audio"]
    for line in rows_of(table, reading, str(path)):
        values = {}
        duration = None
        for heading, value in line.values.items():
            column = column_by_heading[heading]
            if column == "audio" and isinstance(value, str):
                value = value.strip()
            if column in TIMES:
                value = with_unit(value, unit_of(heading))
            if column == "duration" and "end" in columns:
                duration = with_unit(value, unit_of(heading))
            if column in columns and _is_own_duration(heading, column):
                values[column] = value

        with_end = _with_end(values, duration)
        add_row(reading, with_end, str(path), line.where, needs)

    _name_segments(reading.rows)
    # Of each dialogue.
    next_turn = Counter[str]()
    for row in reading.rows:
        dialogue = row["dialogue"]
        next_turn[dialogue] = row.setdefault("turn", next_turn[dialogue]) + 1

    _check_columns(path, table, need, reading)
    return reading


def _with_end(values: dict[str, Any], duration: Any) -> Iterator[tuple[str, Any]]:
    """The values of a row; of one that says where it begins and how long it is, its end too.

    Raises `ValueError` for a duration that is none.
    """
    yield from values.items()
    if is_missing(duration) or not is_missing(values.get("end")):
        return
    # A start that is no time was named before this.
    start = None if is_missing(values.get("start")) else time_of(values["start"])
    if start is None:
        return
    try:
        seconds = time_of(duration)
    except (ValueError, TypeError):
        raise ValueError(
            f"the duration {ascii(duration)[:60]} is not a time, such as 1.5 (seconds), 1500 ms or "
            "00:00:01.5"
        ) from None
    if seconds is not None:
        # To the nanosecond: 0.1 + 0.2 is not 0.3.
        yield "end", round(start + seconds, 9)


def _with_audio_column(table: TableFile) -> TableFile:
    """The table, its column of paths called audio if no other column is."""
    heading = path_heading(table.headings)
    if heading is None:
        return table

    headings = ["audio" if name == heading else name for name in table.headings]
    rows: list[TableRow] = []
    for row in table.rows:
        values = {}
        for name, value in row.values.items():
            values["audio" if name == heading else name] = value
        rows.append(replace(row, values=values))
    return replace(table, headings=headings, rows=rows)


def _refuse_embedded_audio(path: Path, table: TableFile) -> None:
    """Raise `CorpusError` if the audio column holds recordings, not their paths."""
    for row in table.rows[:1]:
        for heading, value in row.values.items():
            if column_of(heading) == "audio" and isinstance(value, dict | bytes):
                raise CorpusError(
                    f"{path}: its column {heading} holds recordings, not their paths, as the "
                    "datasets of Hugging Face do; write them to files (docs/corpora.md, Tables, "
                    "has the lines that do it)"
                )


def _name_segments(rows: list[dict[str, Any]]) -> None:
    """Give the parts of one recording ids of their own, where the audio path would be that of all.

    A dialogue that was called by the id is called by it still.
    """
    places: dict[str, set[tuple[float | None, float | None]]] = {}
    for row in rows:
        if row.get("id_is_path"):
            place = (row.get("start"), row.get("end"))
            places.setdefault(row["audio"], set()).add(place)

    for row in rows:
        if row.get("id_is_path") and len(places[row["audio"]]) > 1:
            is_alone = row["dialogue"] == row["id"]
            row["id"] = segment_id(row["audio"], row.get("start"), row.get("end"))
            row["id_is_span"] = True
            row["id_is_path"] = False
            if is_alone:
                row["dialogue"] = row["id"]


def _has_values(table: TableFile, column: str) -> bool:
    """Whether any row has a value of this column, whatever its heading."""
    for heading in table.headings:
        if column_of(heading) == column and any(heading in row.values for row in table.rows):
            return True
    return False


def _check_columns(path: Path, table: TableFile, need: str, reading: Reading) -> None:
    """Name the columns that are not read. Raises `WrongUse` if no column is the one to `need`."""
    names = {column_of(heading) for heading in table.headings}
    # Where every line is wrong, the problems say more than the missing column.
    columns_known = bool(names) or not reading.problems
    if not reading.rows and columns_known and names.isdisjoint({need, "audio"}):
        raise WrongUse(
            f"{path} has no {need} column ({', '.join(table.headings) or 'empty'}); "
            f"name one of its columns {need}"
        )

    unread = [
        heading or "one without a name"
        for heading in table.headings
        if not _is_read(heading, names)
    ]
    if unread:
        reading.warnings.append(
            f"{path.name}: columns that are not read: {', '.join(unread)}; those that are: "
            f"{', '.join(COLUMNS)}"
        )


@dataclass(frozen=True)
class ListedUtterances:
    """The utterances that a table lists."""

    manifest: Manifest
    """In the order of the table."""
    warnings: list[str]
    """What is odd about the table, but may be meant so."""


def read_manifest(path: Path, corpus: str, need: Literal["id", "audio"] = "id") -> ListedUtterances:
    """Read a manifest from a table.

    `audio` may be absent unless it is the column to `need`. Raises `CorpusError` at the first bad
    row: features that are imported in the manifest's order depend on every row.
    """
    reading = read_table(path, need, SCHEMA.names)
    rows, problems = admit(reading)
    if problems:
        raise CorpusError(f"{path}: {problems[0].reason}; correct the table and run again")
    manifest = Manifest.from_rows(corpus, rows)
    return ListedUtterances(manifest, reading.warnings + warn_of_odd_names(rows))


@dataclass(frozen=True)
class Transcripts:
    """The texts of a table, and what is wrong with them."""

    texts: dict[str, str] = field(default_factory=dict)
    """By id; empty where the table has none."""
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_transcripts(path: Path, ids: list[str]) -> Transcripts:
    """Read the transcripts of a table with columns `id` and `text`.

    It is a problem if one of `ids` has no text, or the table has an id that is not among them.
    Raises `WrongUse` if the file lacks those columns.
    """
    reading = read_table(path, "id", ["id", "audio", "text", *TIMES])
    rows, problems = admit(reading)
    if not any("text" in row for row in rows):
        raise WrongUse(f"{path} has no text in any row; give a file with the columns id and text")

    place = str(path)
    problems = [replace(problem, path=place) for problem in problems]
    texts = {row["id"]: row.get("text", "") for row in rows}

    known = set(ids)
    for row in rows:
        if row["id"] not in known:
            reason = f"{row['line']}: the id {row['id']!a} is not in the corpus"
            problems.append(Problem(None, place, reason))

    for id in ids:
        if id not in texts:
            problems.append(Problem(id, place, "no transcript of this utterance", "text"))
    return Transcripts(texts, problems, reading.warnings)


def _is_read(heading: str, columns: Collection[str]) -> bool:
    """Whether a column of a table that has these `columns` says something to ser.

    A manifest's own duration is known, and comes from the audio; any other one needs a start.
    """
    column = column_of(heading)
    if not _is_own_duration(heading, column):
        return "start" in columns
    return column in SCHEMA.names


def _is_own_duration(heading: str, column: str) -> bool:
    """Whether a column is none of durations, or the one of a manifest, in seconds."""
    return column != "duration" or heading.strip().casefold() == "duration"
