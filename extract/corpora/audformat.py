"""Databases of audformat (audeering): `db.yaml`, the header, and beside it a CSV or Parquet file for each table.

Read here is what a corpus needs: file-wise tables, schemes whose labels are maps, splits. The package audformat is not
used: it also opens pickles.
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml

from ser.cache.atomic_io import read_named
from ser.cache.manifest import SCHEMA
from ser.errors import WrongUse

from .scan import Problem, Reading
from .table import as_row, records

# The usual names of schemes and columns, where they are not the manifest's.
NAMES = {"emotion": "label", "transcription": "text", "transcript": "text", "sex": "gender", "activation": "arousal"}


class Table(msgspec.Struct):
    """A table in the header: its columns by name, each with its scheme."""

    type: str = ""
    split_id: str | None = None
    columns: dict[str, dict[str, Any]] = {}


class Header(msgspec.Struct):
    """What is read of a header."""

    name: str
    tables: dict[str, Table] = {}
    schemes: dict[str, dict[str, Any]] = {}
    splits: dict[str, dict[str, Any]] = {}


def is_audformat(root: Path) -> bool:
    """Whether a folder is such a database."""
    return (root / "db.yaml").is_file()


def read_audformat(root: Path) -> Reading:
    """Read a database; of two tables that say the same of a file, the first counts. The split is the session."""
    try:
        header = msgspec.convert(yaml.safe_load(read_named(root / "db.yaml")), Header, strict=False)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise WrongUse(f"{root / 'db.yaml'} is not the header of an audformat database ({said})") from None
    reading, found = Reading(header.name, root, []), dict[str, dict[str, Any]]()
    for name, table in header.tables.items():
        place = next((p for p in (root / f"db.{name}.csv", root / f"db.{name}.parquet") if p.is_file()), None)
        if table.type != "filewise" or place is None:
            why = "is not here as CSV or Parquet" if table.type == "filewise" else "is not file-wise"
            reading.warnings.append(f"the table {name} {why}, and nothing is taken from it")
            continue
        split = header.splits.get(table.split_id or "", {}).get("type", table.split_id)
        for where, record in records(place):
            if isinstance(record, str) or not isinstance(record.get("file"), str):
                reason = record if isinstance(record, str) else "has no file"
                reading.problems.append(Problem(None, place.name, f"{where}: {reason}"))
                continue
            row = found.setdefault(record["file"], {"audio": record["file"]})
            facts = {"session": split} if split else {}
            for column, value in record.items():
                scheme = table.columns.get(column, {}).get("scheme_id") or column
                labels = header.schemes.get(scheme, {}).get("labels")
                told = {str(k): v for k, v in labels.items()}.get(str(value)) if isinstance(labels, dict) else None
                facts |= told if isinstance(told, dict) else {}  # a speaker's gender, for one
                facts[scheme] = told if isinstance(told, str) else value
            for fact, value in facts.items():
                if (fact := NAMES.get(fact, fact)) in SCHEMA.names and value is not None:
                    row.setdefault(fact, value)
    for path, row in sorted(found.items()):
        try:
            reading.rows.append({"turn": 0, **as_row(row, "audio", SCHEMA.names)})
        except ValueError as error:
            reading.problems.append(Problem(None, path, str(error)))
    return reading
