"""A manifest from a table with the manifest's own column names, for features that come without audio."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from .errors import CorpusError, WrongUse, unknown
from .ids import IdsSeen, id_fault
from .manifest import SCHEMA, Manifest

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_manifest_table(path: Path, corpus: str) -> Manifest:
    """Read a CSV, TSV or Parquet table, rows in the file's order.

    Columns are those of the manifest; only `id` must be there, others are left out. Empty fields are nulls. In a text
    table `votes` is JSON: one list of categories per rater.
    Raises `WrongUse` if the file is no such table and `CorpusError` naming the row that is wrong.
    """
    if not path.is_file():
        raise WrongUse(f"{path}: does not exist")
    table = _read(path)
    if "id" not in table.column_names:
        raise WrongUse(f"{path}: has no column 'id'; columns: {', '.join(table.column_names)}")
    names = [name for name in SCHEMA.names if name in table.column_names]
    rows = [_typed(path, number, row) for number, row in enumerate(table.select(names).to_pylist(), 1)]
    seen = IdsSeen()
    for number, row in enumerate(rows, 1):
        if fault := id_fault(row["id"]) or seen.fault(row["id"]):
            raise CorpusError(f"{path}: row {number}: {fault}")
    try:
        return Manifest.from_rows(corpus, rows)
    except (pa.ArrowException, TypeError) as error:
        raise CorpusError(f"{path}: cannot be a manifest ({str(error).splitlines()[0]})") from error


def _read(path: Path) -> pa.Table:
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return pq.ParquetFile(path).read()
        if suffix not in _SEPARATORS:
            raise unknown("table format", suffix or path.name, [*_SEPARATORS, ".parquet"])
        with path.open(encoding="utf-8") as file:
            names = [name.strip().strip('"\ufeff') for name in file.readline().rstrip("\n").split(_SEPARATORS[suffix])]
        return csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter=_SEPARATORS[suffix], newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=[""]
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]})") from error


def _typed(path: Path, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's fields in the manifest's types; text tables come as text."""
    typed: dict[str, Any] = {}
    for name, value in row.items():
        kind = SCHEMA.field(name).type
        try:
            if value is None or value == "":
                typed[name] = None
            elif name == "votes":
                typed[name] = json.loads(value) if isinstance(value, str) else value
            elif pa.types.is_integer(kind):
                typed[name] = int(value)
            elif pa.types.is_floating(kind):
                typed[name] = float(value)
            else:
                typed[name] = str(value)
        except (TypeError, ValueError) as error:
            raise CorpusError(f"{path}: row {number}, column '{name}': {value!r} is not valid") from error
    if typed.get("id") is None:
        raise CorpusError(f"{path}: row {number} has no id")
    return typed
