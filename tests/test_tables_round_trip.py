"""Random tables by writers of every kind: what went in comes out, or the table is refused.

Seconds of it in `make test`; more with `SER_TABLES=20000`, the number of tables.
"""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from ser.corpus.headings import column_of
from ser.errors import CorpusError, WrongUse
from ser.extract.corpora.table import read_table

EXAMPLES = int(os.environ.get("SER_TABLES", "150"))

# What tables are torn apart by.
PIECES = ['"', '""', ",", ";", "\n", "\r\n", "\t", "a", "no", "NA", "nan", "0,5", "é", "'", "x y"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=7).map("".join).map(str.strip)
NAMES = st.sampled_from(["anna", " anna ", "Bob", "01", "1", "e\u0301", "NA"])
LABELS = st.sampled_from(["ang", "neu", "nan", None])
RATINGS = st.sampled_from(["0.5", "2,5", "-1", "1e-1", "NaN", None])
TURNS = st.sampled_from(["0", "1.0", "2,0", "0.5", None])
ROWS = st.lists(st.tuples(TEXTS, NAMES, LABELS, RATINGS, TURNS), min_size=1, max_size=6)

HEADINGS = ("id", "text", "speaker", "label", "valence", "turn")
ALIKE = {"anna": "anna", " anna ": "anna", "e\u0301": "\u00e9"}
NUMBERS = {"0.5": 0.5, "2,5": 2.5, "-1": -1.0, "1e-1": 0.1, "NaN": None, None: None}
RANKS = {"0": 0, "1.0": 1, "2,0": 2}

Table = list[dict[str, Any]]


def write_careful_csv(path: Path, table: Table, **how: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        sheet = csv.DictWriter(file, list(table[0]), **how)
        sheet.writeheader()
        sheet.writerows(table)


def write_careless(path: Path, table: Table, delimiter: str) -> None:
    """By a writer that knows no quotation."""
    lines = [delimiter.join(table[0])]
    for row in table:
        lines.append(delimiter.join(value or "" for value in row.values()))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")


def write_jsonl(path: Path, table: Table) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))


def write_utf16(path: Path, table: Table) -> None:
    frame = pd.DataFrame(table)
    frame.to_csv(path, index=False, encoding="utf-16-le")


def write_tsv_by_pandas(path: Path, table: Table) -> None:
    pd.DataFrame(table).to_csv(path, index=False, sep="\t")


CAREFUL: dict[str, tuple[str, Callable[[Path, Table], None]]] = {
    "commas": ("csv", write_careful_csv),
    "semicolons": ("csv", lambda path, table: write_careful_csv(path, table, delimiter=";")),
    "all quoted": (
        "csv",
        lambda path, table: write_careful_csv(path, table, quoting=csv.QUOTE_ALL),
    ),
    "UTF-16": ("csv", write_utf16),
    "JSON": ("jsonl", write_jsonl),
    "Parquet": ("parquet", lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path)),
    "TSV by pandas": ("tsv", write_tsv_by_pandas),
}
CARELESS: dict[str, tuple[str, Callable[[Path, Table], None]]] = {
    "commas": ("csv", lambda path, table: write_careless(path, table, ",")),
    "semicolons": ("csv", lambda path, table: write_careless(path, table, ";")),
    "tabs": ("tsv", lambda path, table: write_careless(path, table, "\t")),
}


def table_of(rows: list[tuple[Any, ...]]) -> Table:
    return [dict(zip(HEADINGS, (f"u{n}", *row), strict=True)) for n, row in enumerate(rows)]


def check(path: Path, table: Table, kind: str, marks_matter: bool) -> None:
    """Every row has come out as it went in, or is named."""
    try:
        reading = read_table(path, "id")
    except (CorpusError, WrongUse) as error:
        hypothesis.event(f"{kind}: refused")
        assert "line" in str(error) or "columns" in str(error)
        return

    came_out = {row["id"]: row for row in reading.rows}
    lost = []
    for row in table:
        if row["id"] not in came_out:
            lost.append(row["id"])
            continue
        found = came_out[row["id"]]
        text = found.get("text", "")
        if marks_matter:
            assert text == row["text"]
        else:
            # Whether marks belong to a cell, nobody can say; what else it holds is whole.
            assert text.replace('"', "").strip() == row["text"].replace('"', "").strip()
        assert found.get("speaker") == ALIKE.get(row["speaker"], row["speaker"].strip())
        assert found.get("label") == row["label"]
        assert found.get("valence") == NUMBERS[row["valence"]]
        if row["turn"] is not None:
            assert found["turn"] == RANKS[row["turn"]]

    invented = set(came_out) - {row["id"] for row in table}
    if lost or invented:
        assert reading.problems, "rows vanished, or were made, without a word"
    hypothesis.event(f"{kind}: {'some named' if lost else 'all read'}")


@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000)
@hypothesis.given(ROWS, st.sampled_from(sorted(CAREFUL)), st.sampled_from([str, str.upper]))
def test_careful_writers(
    tmp_path_factory: Any, rows: list[tuple[Any, ...]], kind: str, case: Callable[[str], str]
) -> None:
    ending, write = CAREFUL[kind]
    path = tmp_path_factory.getbasetemp() / f"careful.{ending}"
    table = table_of(rows)
    assert [column_of(case(heading)) for heading in HEADINGS] == list(HEADINGS)
    write(path, [{case(heading): value for heading, value in row.items()} for row in table])
    check(path, table, kind, marks_matter=True)


@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000)
@hypothesis.given(ROWS, st.sampled_from(sorted(CARELESS)))
def test_careless_writers(tmp_path_factory: Any, rows: list[tuple[Any, ...]], kind: str) -> None:
    ending, write = CARELESS[kind]
    path = tmp_path_factory.getbasetemp() / f"careless.{ending}"
    table = table_of(rows)
    for row in table:
        # A line break that nothing quotes makes rows that nobody can tell from others.
        row["text"] = " ".join(row["text"].split())
    write(path, table)
    check(path, table, kind, marks_matter=False)
