"""The records of a table file, one by one: CSV, TSV, Parquet or JSONL."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ser.corpus.schema import SCHEMA
from ser.disk.read import LARGE, read_named
from ser.errors import CorpusError, WrongUse

from .files import read_text
from .reading import Problem

TABLE_ENDINGS = {".csv", ".tsv", ".jsonl", ".parquet"}

# What others call the columns of a manifest: nkululeko's CSV (file, speaker, gender, emotion),
# EmoBox's JSONL (key, wav, length, emo) and their like.
ALIASES = {
    "file": "audio",
    "wav": "audio",
    "emotion": "label",
    "emo": "label",
    "key": "id",
    "spk": "speaker",
}

Record = dict[str, Any]  # the values of a line, by the table's own names


@dataclass(frozen=True)
class _BadLine:
    """A line of a table that is no record."""

    reason: str


def read_records(path: Path, problems: list[Problem], place: str) -> Iterator[tuple[str, Record]]:
    """Each record of a table file, and where it is, such as "line 7".

    Lines that are no record are added to the `problems` of `place`. Raises `WrongUse` if there is
    no file of a known kind, `CorpusError` if it cannot be read as its ending says.
    """
    ending = path.suffix.lower()
    if ending not in TABLE_ENDINGS:
        raise WrongUse(
            f"{path} is not a table that ser can read; "
            f"its name should end in {', '.join(sorted(TABLE_ENDINGS))}"
        )
    if not path.is_file():
        raise WrongUse(f"{path} is not a file; give a CSV, TSV, Parquet or JSONL file")

    try:
        for where, record in _read(path, ending):
            if isinstance(record, _BadLine):
                problems.append(Problem(None, place, f"{where}: {record.reason}"))
            else:
                yield where, record
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{path} cannot be read as {ending[1:]}: {reason}") from error


def _read(path: Path, ending: str) -> Iterator[tuple[str, Record | _BadLine]]:
    if ending == ".jsonl":
        return _read_jsonl(read_text(path))
    if ending == ".parquet":
        return _read_parquet(path)
    return _read_csv(read_text(path), ending)


def _read_parquet(path: Path) -> Iterator[tuple[str, Record]]:
    file = pq.ParquetFile(pa.BufferReader(read_named(path, LARGE)))
    table = file.read(use_threads=False)
    _check_names(table.column_names)
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"row {number}", row


def _read_jsonl(text: str) -> Iterator[tuple[str, Record | _BadLine]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _json_object(line)


def _json_object(line: str) -> Record | _BadLine:
    try:
        record = json.loads(line, object_pairs_hook=_checked_record)
    except (json.JSONDecodeError, RecursionError):
        return _BadLine("is not JSON")
    except ValueError as error:  # two columns for one thing, or a number of thousands of digits
        return _BadLine(str(error))
    if not isinstance(record, dict):
        return _BadLine("is not a JSON object")
    return record


def _read_csv(text: str, ending: str) -> Iterator[tuple[str, Record | _BadLine]]:
    """Cells that are empty are left out of their record."""
    header = text.partition("\n")[0]
    # As Excel saves it, the delimiter hangs on the language.
    delimiter = "\t" if ending == ".tsv" else max(",;\t", key=header.count)

    # StringIO without newline translation: a quoted cell may hold line ends, and str.splitlines
    # splits at other ones.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_names(names)

        for cells in reader:
            if not cells:
                continue
            where = f"line {reader.line_num}"
            if len(cells) != len(names):
                reason = f"has {len(cells)} columns where the header has {len(names)}"
                yield where, _BadLine(reason)
                continue
            pairs = zip(names, cells, strict=True)
            yield where, {name: cell for name, cell in pairs if cell != ""}
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from error


def _checked_record(pairs: list[tuple[str, Any]]) -> Record:
    """A record of these names and values. Raises `ValueError` as `_check_names`."""
    _check_names([name for name, _ in pairs])
    return dict(pairs)


def _check_names(names: list[str]) -> None:
    """Raise `ValueError` if two of a table's names mean the same column of the manifest."""
    columns = [ALIASES.get(name, name) for name in names]
    counts = Counter(columns)
    for column in SCHEMA.names:
        if counts[column] > 1:
            rivals = [
                name for name, meaning in zip(names, columns, strict=True) if meaning == column
            ]
            raise ValueError(
                f"two columns stand for the {column} ({', '.join(rivals)}): "
                "keep the one that counts"
            )
