"""Any corpus as a table: CSV, TSV, Parquet or JSONL with an audio column.

Columns have the manifest's names, or those of `ALIASES`. Audio paths are relative to the table's
folder.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ser.corpus.manifest import Manifest
from ser.corpus.schema import SCHEMA
from ser.errors import CorpusError, WrongUse

from .admit import admit
from .reading import Problem, Reading
from .records import ALIASES, read_records
from .rows import MEASURED, add_row

COLUMNS = [name for name in SCHEMA.names if name not in MEASURED]


def read_table(
    path: Path, need: Literal["id", "audio"] = "audio", columns: Sequence[str] = COLUMNS
) -> Reading:
    """Read these of the manifest's `columns` from a table file.

    Every row must have the column `need`. A bad row becomes a `Problem` with its line number.
    """
    reading = Reading(path.stem, path.parent, [], paths="inside" if need == "audio" else "unopened")
    names: dict[str, str] = {}  # the manifest's, by the file's
    next_turn = Counter[str]()  # of each dialogue

    for line, record in read_records(path, reading.problems, str(path), reading.warnings):
        values = []
        for name, value in record.items():
            column = ALIASES.get(name, name)
            names[name] = column
            if column in columns:
                values.append((column, value))

        row = add_row(reading, values, str(path), line, need)
        if row is not None:
            dialogue = row["dialogue"]
            next_turn[dialogue] = row.setdefault("turn", next_turn[dialogue]) + 1

    # Where every line is wrong, the problems say more than the missing column.
    columns_known = bool(names) or not reading.problems
    if not reading.rows and columns_known and need not in names.values():
        raise WrongUse(
            f"{path} has no {need} column ({', '.join(names) or 'empty'}); "
            f"name one of its columns {need}"
        )
    return reading


def read_manifest(path: Path, corpus: str, need: Literal["id", "audio"] = "id") -> Manifest:
    """Read a manifest from a table, rows in the file's order.

    `audio` may be absent unless it is the column to `need`. Raises `CorpusError` at the first bad
    row: features that are imported in the manifest's order depend on every row.
    """
    rows, problems = admit(read_table(path, need, SCHEMA.names))
    if problems:
        raise CorpusError(f"{path}: {problems[0].reason}; correct the table and run again")
    return Manifest.from_rows(corpus, rows)


def read_transcripts(path: Path, ids: list[str]) -> tuple[dict[str, str], list[Problem]]:
    """The texts of a table with columns `id` and `text`, by id, and what is wrong with them.

    It is a problem if one of `ids` has no text, or the table has an id that is not among them.
    Raises `WrongUse` if the file lacks those columns.
    """
    rows, problems = admit(read_table(path, "id", ["id", "text"]))
    if not any("text" in row for row in rows):
        raise WrongUse(f"{path} has no text in any row; give a file with the columns id and text")

    place = str(path)
    problems = [replace(problem, path=place) for problem in problems]
    texts = {row["id"]: row.get("text", "") for row in rows}

    known = set(ids)
    for row in rows:
        if row["id"] not in known:
            reason = f"{row['where']}: the id {row['id']!a} is not in the corpus"
            problems.append(Problem(None, place, reason))

    for id in ids:
        if id not in texts:
            problems.append(Problem(id, place, "no transcript of this utterance", "text"))
    return texts, problems
