"""The records of a table file, one by one: CSV, TSV, Parquet or JSONL."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ser.corpus.delimited import read_delimited
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


def read_records(
    path: Path, problems: list[Problem], place: str, warnings: list[str]
) -> Iterator[tuple[str, Record]]:
    """Each record of a table file, and where it is, such as "line 7".

    Lines that are no record are added to the `problems` of `place`, and rows on several lines are
    said in `warnings`. Raises `WrongUse` if there is
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
        for where, record in _read(path, ending, warnings):
            if isinstance(record, _BadLine):
                problems.append(Problem(None, place, f"{where}: {record.reason}"))
            else:
                yield where, record
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{path} cannot be read as {ending[1:]}: {reason}") from error


def _read(path: Path, ending: str, warnings: list[str]) -> Iterator[tuple[str, Record | _BadLine]]:
    if ending == ".jsonl":
        return _read_jsonl(read_text(path))
    if ending == ".parquet":
        return _read_parquet(path)
    return _read_delimited(path, ending, warnings)


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


def _read_delimited(
    path: Path, ending: str, warnings: list[str]
) -> Iterator[tuple[str, Record | _BadLine]]:
    """Cells that are empty are left out of their record."""
    rows = read_delimited(read_text(path), has_tabs=ending == ".tsv")
    header = next(rows, None)
    names = [name.strip() for name in header.cells] if header else []
    _check_names(names)

    count = 0
    on_several_lines: list[str] = []
    last_line = 1
    for row in rows:
        count += 1
        last_line = row.last_line
        if row.first_line != row.last_line:
            on_several_lines.append(row.where)

        if len(row.cells) != len(names):
            reason = f"has {len(row.cells)} columns where the header has {len(names)}"
            yield row.where, _BadLine(reason)
            continue
        pairs = zip(names, row.cells, strict=True)
        yield row.where, {name: cell for name, cell in pairs if cell != ""}

    if on_several_lines:
        warnings.append(
            f"{path.name}: {count} rows on {last_line} lines: {len(on_several_lines)} hold line "
            f"breaks, such as {on_several_lines[0]}"
        )


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
