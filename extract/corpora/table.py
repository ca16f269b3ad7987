"""Any corpus as a table: CSV, TSV, Parquet or JSONL with an audio column; or as the tables of
audformat (audeering).

Columns have the manifest's names; those of nkululeko's CSV (`file,speaker,gender,emotion`) and
EmoBox's JSONL (`key,wav,length,emo`) are understood too. Audio paths are relative to the table's
folder.
"""

import csv
import io
import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ser.corpus.manifest import Manifest
from ser.corpus.schema import SCHEMA
from ser.disk.read import LARGE, read_named
from ser.errors import CorpusError, WrongUse

from .scan import TABLES, Problem, Reading, admit, read_text

NAMES = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))
ALIASES = NAMES["columns"]
MEASURED = (
    "audio_sha256",
    "text_sha256",
    "duration",
)  # taken from the files, whatever a table says
COLUMNS = [name for name in SCHEMA.names if name not in MEASURED]


def read_table(
    path: Path, need: Literal["id", "audio"] = "audio", columns: Sequence[str] = COLUMNS
) -> Reading:
    """Read these of the manifest's `columns` from a table file; every row must have the column
    `need`.

    A bad row becomes a `Problem` with its line number.
    """
    reading = Reading(path.stem, path.parent, [], paths="inside" if need == "audio" else "unopened")
    names, turns = (
        dict[str, str](),
        Counter[str](),
    )  # the manifest's names by the file's; next turn of each dialogue
    for line, record in records(path, reading.problems, str(path)):
        names |= {name: ALIASES.get(name, name) for name in record}
        known = [(names[name], value) for name, value in record.items() if names[name] in columns]
        if row := add_row(reading, known, str(path), line, need):
            turns[row["dialogue"]] = row.setdefault("turn", turns[row["dialogue"]]) + 1
    if not reading.rows and (names or not reading.problems) and need not in names.values():
        raise WrongUse(
            f"{path} has no {need} column ({', '.join(names) or 'empty'}); name one of its columns {need}"
        )
    return reading


class DatabaseTable(msgspec.Struct):
    """One table, as the header of a database describes it."""

    type: str = ""
    split_id: str | None = None
    columns: dict[str, dict[str, Any]] = {}


class Database(msgspec.Struct):
    """The parts of an audformat database's header that are read."""

    name: str
    tables: dict[str, DatabaseTable] = {}
    schemes: dict[str, dict[str, Any]] = {}
    splits: dict[str, dict[str, Any]] = {}


def read_audformat(root: Path) -> Reading:
    """Read a database of audformat: `db.yaml`, the header, and beside it a CSV or Parquet file for
    each table.

    It reads file-wise tables, schemes whose labels are maps, and splits, each as a session. If two
    tables disagree on a file, the first counts. The package audformat is not used: it also opens
    pickles.
    """
    try:
        header = msgspec.convert(
            yaml.safe_load(read_named(root / "db.yaml")), Database, strict=False
        )
    except (OSError, ValueError, RecursionError, yaml.YAMLError, msgspec.ValidationError) as error:
        reason = " ".join(str(error).split())
        raise WrongUse(
            f"{root / 'db.yaml'} is not the header of an audformat database ({reason})"
        ) from None
    reading, rows = (
        Reading(header.name, root, [], paths="inside"),
        dict[str, dict[str, Any]](),
    )  # by file
    labels = {}
    for name, scheme in header.schemes.items():
        if isinstance(listed := scheme.get("labels"), dict):
            labels[name] = {str(label): meaning for label, meaning in listed.items()}
    for name, table in header.tables.items():
        place = next(
            (p for p in (root / f"db.{name}.csv", root / f"db.{name}.parquet") if p.is_file()), None
        )
        if table.type != "filewise" or place is None:
            reading.warnings.append(
                f"the table {name} is not by file, or not here as CSV or Parquet: it is not read"
            )
            continue
        split = table.split_id
        session = (
            {} if split is None else {"session": header.splits.get(split, {}).get("type", split)}
        )
        for where, record in records(place, reading.problems, place.name):
            if not isinstance(record.get("file"), str):
                reading.problems.append(Problem(None, place.name, f"{where}: names no file"))
                continue
            row = rows.setdefault(record["file"], {"audio": record["file"]})
            values: dict[str, Any] = dict(session)
            for column, value in record.items():
                scheme_id = str(table.columns.get(column, {}).get("scheme_id") or column)
                meaning = labels.get(scheme_id, {}).get(str(value))
                values |= meaning if isinstance(meaning, dict) else {}  # such as a speaker's gender
                values[scheme_id] = meaning if isinstance(meaning, str) else value
            for key, value in values.items():
                if (column := NAMES["schemes"].get(key, key)) in COLUMNS and value is not None:
                    row.setdefault(column, value)
    for path, row in sorted(rows.items()):
        add_row(reading, {"turn": 0, **row}.items(), path)
    return reading


def read_manifest(path: Path, corpus: str, need: Literal["id", "audio"] = "id") -> Manifest:
    """Read a manifest from a table, rows in the file's order; `audio` may be absent unless it is
    the column to `need`.

    Raises `CorpusError` at the first bad row: features that are imported in the manifest's order
    depend on every row.
    """
    rows, problems = admit(read_table(path, need, SCHEMA.names))
    if problems:
        raise CorpusError(f"{path}: {problems[0].reason}; correct the table and run again")
    return Manifest.from_rows(corpus, rows)


def read_transcripts(path: Path, ids: list[str]) -> tuple[dict[str, str], list[Problem]]:
    """The texts of `path`, a table with columns `id` and `text`, by id, and a problem for each of
    `ids` without one.

    Ids of `path` that are not among `ids` are problems as well. Raises `WrongUse` if the file lacks
    those columns.
    """
    rows, problems = admit(read_table(path, "id", ["id", "text"]))
    if not any("text" in row for row in rows):
        raise WrongUse(f"{path} has no text in any row; give a file with the columns id and text")
    known, place = {*ids}, str(path)
    problems = [replace(problem, path=place) for problem in problems]
    texts = {row["id"]: row.get("text", "") for row in rows}
    for row in rows:
        if row["id"] not in known:
            problems.append(
                Problem(None, place, f"{row['where']}: the id {row['id']!a} is not in the corpus")
            )
    problems += [
        Problem(id, place, "no transcript of this utterance", "text")
        for id in ids
        if id not in texts
    ]
    return texts, problems


def records(
    path: Path, problems: list[Problem], place: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record of a table file, and where it is ("line 7"); other lines are added to the
    `problems` of `place`.

    Raises `WrongUse` if there is no file of a known kind, `CorpusError` if it cannot be read as its
    suffix says.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise WrongUse(
            f"{path} is not a table that ser can read; its name should end in {', '.join(sorted(TABLES))}"
        )
    if not path.is_file():
        raise WrongUse(f"{path} is not a file; give a CSV, TSV, Parquet or JSONL file")
    try:
        if suffix in (".csv", ".tsv"):
            read = _csv_lines(read_text(path), suffix)
        elif suffix == ".jsonl":
            lines = enumerate(read_text(path).split("\n"), 1)
            read = (
                (f"line {number}", _json_object(line)) for number, line in lines if line.strip()
            )
        else:
            table = pq.ParquetFile(pa.BufferReader(read_named(path, LARGE))).read(use_threads=False)
            _record([(name, None) for name in table.column_names])
            read = ((f"row {number}", row) for number, row in enumerate(table.to_pylist(), 1))
        for where, record in read:
            if isinstance(record, str):
                problems.append(Problem(None, place, f"{where}: {record}"))
            else:
                yield where, record
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        raise CorpusError(
            f"{path} cannot be read as {suffix[1:]}: {' '.join(str(error).split())}"
        ) from error


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A record of these names and values. Raises `ValueError` if two names mean the same column of
    the manifest.
    """
    columns = Counter(ALIASES.get(name, name) for name, _ in pairs)
    for column in SCHEMA.names:
        if columns[column] > 1:
            names = ", ".join(name for name, _ in pairs if ALIASES.get(name, name) == column)
            raise ValueError(
                f"two columns stand for the {column} ({names}): keep the one that counts"
            )
    return dict(pairs)


def _csv_lines(text: str, suffix: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    header = text.partition("\n")[0]
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=header.count)
    # StringIO without newline translation: a quoted cell may hold line ends, and str.splitlines
    # splits at other ones.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        _record([(name, None) for name in names])
        for cells in filter(None, reader):
            where = f"line {reader.line_num}"
            if len(cells) != len(names):
                yield where, f"has {len(cells)} columns where the header has {len(names)}"
            else:
                yield (
                    where,
                    {name: cell for name, cell in zip(names, cells, strict=True) if cell != ""},
                )
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from error


def _json_object(line: str) -> dict[str, Any] | str:
    try:
        record = json.loads(line, object_pairs_hook=_record)
    except (json.JSONDecodeError, RecursionError):
        return "is not JSON"
    except ValueError as error:  # two columns for one thing, or a number of thousands of digits
        return str(error)
    return record if isinstance(record, dict) else "is not a JSON object"


def add_row(
    reading: Reading,
    record: Iterable[tuple[str, Any]],
    place: str,
    where: str = "",
    need: str = "audio",
) -> dict[str, Any] | None:
    """Add a record, by the manifest's columns, to the reading's rows. Returns the row, if there is
    one.

    A wrong value, or a record without the column that it `need`s, is a problem of that `place`. So
    is a `ValueError` that the record raises while it is read.
    """
    try:
        row = {"where": where} | {
            column: _value(column, value) for column, value in record if value is not None
        }
        if need not in row:
            raise ValueError(f"has no {need}")
    except ValueError as error:
        reading.problems.append(Problem(None, place, f"{where}: {error}".removeprefix(": ")))
        return None
    if "audio" in row:
        row["audio"] = row["audio"].removeprefix("./")
        row.setdefault(
            "id",
            str(PurePosixPath(row["audio"]).with_suffix("")) if row["audio"].strip("./") else "",
        )
    row.setdefault("dialogue", row["id"])
    if "gender" in row:
        row["gender"] = NAMES["genders"].get(row["gender"].lower())
    reading.rows.append(row)
    return row


def _value(column: str, value: Any) -> Any:
    kind = SCHEMA.field(column).type
    try:
        if column == "votes":
            return msgspec.convert(
                json.loads(value) if isinstance(value, str) else value, list[list[str]]
            )
        if isinstance(value, bytes | list | tuple | dict):  # whose str() would be taken for a text
            raise TypeError
        converted: Any = {pa.int32(): int, pa.float64(): float}.get(kind, str)(value)
        if isinstance(converted, str):
            converted.encode()
        elif not math.isfinite(converted) or (
            isinstance(converted, int) and not 0 <= converted < 1 << 31
        ):
            raise ValueError
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.ValidationError):
        special = {"votes": 'JSON such as [["ang"], ["neu", "sad"]]', "turn": "a number from 0"}
        expected = special.get(column, "valid Unicode" if kind == pa.string() else "a number")
        raise ValueError(f"the {column} {ascii(value)[:60]} is not {expected}") from None
    return converted
