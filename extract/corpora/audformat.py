"""Databases of audformat (audeering): `db.yaml`, the header, and beside it a CSV or Parquet file for each table.

Read here is what a corpus needs: file-wise tables, schemes whose labels are maps, splits. The package audformat is not
used: it also opens pickles.
"""

from pathlib import Path
from typing import Any, TypedDict

import msgspec
import yaml

from ser.cache.atomic_io import read_named
from ser.errors import WrongUse

from .scan import Problem, Reading
from .table import COLUMNS, NAMES, add_row, records


class Table(TypedDict, total=False):
    type: str
    split_id: str | None
    columns: dict[str, dict[str, Any]]


class Header(msgspec.Struct):
    """What is read of a header, by the names of its parts."""

    name: str
    tables: dict[str, Table] = {}
    schemes: dict[str, dict[str, Any]] = {}
    splits: dict[str, dict[str, Any]] = {}


def read_audformat(root: Path) -> Reading:
    """Read a database; of two tables that say the same of a file, the first counts. The split is the session."""
    try:
        header = msgspec.convert(yaml.safe_load(read_named(root / "db.yaml")), Header, strict=False)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, msgspec.ValidationError) as error:
        said = " ".join(str(error).split())
        raise WrongUse(f"{root / 'db.yaml'} is not the header of an audformat database ({said})") from None
    reading, found = Reading(header.name, root, [], paths="inside"), dict[str, dict[str, Any]]()
    mapped = {name: one["labels"] for name, one in header.schemes.items() if isinstance(one.get("labels"), dict)}
    labels = {name: {str(k): v for k, v in listed.items()} for name, listed in mapped.items()}
    for name, table in header.tables.items():
        place = next((p for p in (root / f"db.{name}.csv", root / f"db.{name}.parquet") if p.is_file()), None)
        if table.get("type") != "filewise" or place is None:
            reading.warnings.append(f"the table {name} is not by file, or not here as CSV or Parquet: it is not read")
            continue
        columns, split = table.get("columns", {}), table.get("split_id")
        session = {} if split is None else {"session": header.splits.get(split, {}).get("type", split)}
        for where, record in records(place, reading.problems, place.name):
            if not isinstance(record.get("file"), str):
                reading.problems.append(Problem(None, place.name, f"{where}: is no row of a file"))
                continue
            row = found.setdefault(record["file"], {"audio": record["file"]})
            facts: dict[str, Any] = dict(session)
            for column, value in record.items():
                scheme = str(columns.get(column, {}).get("scheme_id") or column)
                told = labels.get(scheme, {}).get(str(value))
                facts |= told if isinstance(told, dict) else {}  # a speaker's gender, for one
                facts[scheme] = told if isinstance(told, str) else value
            for fact, value in facts.items():
                if (fact := NAMES["schemes"].get(fact, fact)) in COLUMNS and value is not None:
                    row.setdefault(fact, value)
    for path, row in sorted(found.items()):
        add_row(reading, {"turn": 0, **row}.items(), path)
    return reading
