"""A database of audformat (audeering): a header, and a table file for each of its tables.

The package audformat is not used: it also opens pickles.
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml

from ser.corpus.table_file import read_table_file
from ser.disk.read import read_named
from ser.errors import WrongUse

from .reading import Problem, Reading, rows_of
from .rows import add_row
from .table import COLUMNS

# The usual names of schemes and columns, where they are not the manifest's.
COLUMN_OF_SCHEME = {
    "emotion": "label",
    "transcription": "text",
    "transcript": "text",
    "sex": "gender",
    "activation": "arousal",
}


# Bytes: more than any header has.
MAX_HEADER = 16 << 20

# The values of a header with all that its aliases stand for.
MAX_NODES = 1_000_000


class DatabaseTable(msgspec.Struct):
    """One table, as the header of a database describes it."""

    type: str = ""
    split_id: str | None = None
    columns: dict[str, dict[str, Any]] = {}


class Database(msgspec.Struct):
    """The parts of a database's header that are read."""

    name: str
    tables: dict[str, DatabaseTable] = {}
    schemes: dict[str, dict[str, Any]] = {}
    splits: dict[str, dict[str, Any]] = {}


# By the text of a scheme's label, what it means: a text, or fields such as a speaker's gender.
Meanings = dict[str, Any]


def read_audformat(root: Path) -> Reading:
    """Read a database: `db.yaml`, the header, and beside it a CSV or Parquet file for each table.

    It reads file-wise tables, schemes whose labels are maps, and splits, each as a session. If two
    tables disagree on a file, the first counts.
    """
    database = _read_header(root / "db.yaml")
    meanings = _meanings(database)
    reading = Reading(database.name, root, [], paths="inside")
    rows: dict[str, dict[str, Any]] = {}  # by file

    for name, table in database.tables.items():
        path = _table_file(root, name)
        if table.type != "filewise" or path is None:
            reading.warnings.append(
                f"the table {name} is not by file, or not here as CSV or Parquet: it is not read"
            )
            continue

        for line in rows_of(read_table_file(path), reading, path.name):
            file = line.values.get("file")
            if not isinstance(file, str):
                reading.problems.append(Problem(None, path.name, f"{line.where}: names no file"))
                continue
            row = rows.setdefault(file, {"audio": file})
            for key, value in _values(line.values, table, database, meanings).items():
                column = COLUMN_OF_SCHEME.get(key, key)
                if column in COLUMNS and value is not None:
                    row.setdefault(column, value)

    if not rows and reading.warnings:
        raise WrongUse(
            f"{root}: {reading.warnings[0]}; save one table by file as CSV or Parquet, and cut "
            "segments into files of their own"
        )
    for file, row in sorted(rows.items()):
        add_row(reading, {"turn": 0, **row}.items(), file)
    return reading


def _read_header(path: Path) -> Database:
    try:
        content = _load_yaml(read_named(path, MAX_HEADER))
        return msgspec.convert(content, Database, strict=False)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, msgspec.ValidationError) as error:
        reason = " ".join(str(error).split())
        raise WrongUse(f"{path} is not the header of an audformat database ({reason})") from None


def _load_yaml(content: bytes) -> Any:
    """The value of a YAML document. Raises `ValueError` for aliases that make it far larger.

    An alias stands for a part of the document; aliases of aliases double it line by line.
    """
    loader = yaml.SafeLoader(content)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _count_nodes(root, {}) > MAX_NODES:
            raise ValueError(f"its aliases make it more than {MAX_NODES} values")
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node holds, those of aliases each time; `counts` are of nodes so far."""
    if id(node) in counts:
        return counts[id(node)]

    # An alias may stand for a part that it is in: that has no end.
    counts[id(node)] = MAX_NODES
    count = 1
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            count += _count_nodes(entry, counts)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            count += _count_nodes(key, counts) + _count_nodes(value, counts)
    counts[id(node)] = count
    return count


def _meanings(database: Database) -> dict[str, Meanings]:
    """The meanings of the labels of each scheme whose labels are a map."""
    meanings = {}
    for name, scheme in database.schemes.items():
        labels = scheme.get("labels")
        if isinstance(labels, dict):
            meanings[name] = {str(label): meaning for label, meaning in labels.items()}
    return meanings


def _table_file(root: Path, name: str) -> Path | None:
    for path in (root / f"db.{name}.csv", root / f"db.{name}.parquet"):
        if path.is_file():
            return path
    return None


def _values(
    record: dict[str, Any], table: DatabaseTable, database: Database, meanings: dict[str, Meanings]
) -> dict[str, Any]:
    """The values of a record, by their schemes, with labels replaced by what they mean."""
    values: dict[str, Any] = {}
    split = table.split_id
    if split is not None:
        values["session"] = database.splits.get(split, {}).get("type", split)

    for column, value in record.items():
        scheme = str(table.columns.get(column, {}).get("scheme_id") or column)
        meaning = meanings.get(scheme, {}).get(str(value))
        if isinstance(meaning, dict):  # such as a speaker's gender
            values.update(meaning)
        values[scheme] = meaning if isinstance(meaning, str) else value
    return values
