"""Random tables by writers of every kind: what went in comes out, or the table is refused.

Of utterances, of transcripts, of folds and of features. Seconds of it in `make test`; more with
`SER_TABLES=20000`, the number of tables of each kind, which are others each time.
"""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from ser.cache.tools.feature_table import read_feature_table
from ser.corpus.headings import column_of
from ser.errors import CorpusError, StoreError, WrongUse
from ser.extract.corpora.table import read_table, read_transcripts
from ser.train.data.fold_files import read_folds

EXAMPLES = int(os.environ.get("SER_TABLES", "60"))
SETTINGS = hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000)

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


@SETTINGS
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


@SETTINGS
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


# Transcripts and folds
# ----------------------------------------

# Ids are names: what could tear them apart is no name, but a mark is.
IDS = st.lists(
    st.sampled_from(["a", 'b"', "'c", "d e", "1", "01", "x/y", "é", "nan"]),
    min_size=1,
    max_size=6,
    unique=True,
)


@SETTINGS
@hypothesis.given(IDS, st.lists(TEXTS, min_size=6, max_size=6), st.sampled_from(sorted(CAREFUL)))
def test_transcripts(tmp_path_factory: Any, ids: list[str], texts: list[str], kind: str) -> None:
    ending, write = CAREFUL[kind]
    path = tmp_path_factory.getbasetemp() / f"transcripts.{ending}"
    write(path, [{"ID": id_, "Text": text} for id_, text in zip(ids, texts, strict=False)])
    try:
        transcripts = read_transcripts(path, ids)
    except (CorpusError, WrongUse) as error:
        assert "line" in str(error) or "no text in any row" in str(error)
        return

    named = " ".join(str(problem) for problem in transcripts.problems)
    # The line break that pandas quotes in a TSV ends a row: what comes behind it is named.
    is_torn = "columns where the header has" in named
    for id_, text in zip(ids, texts, strict=False):
        if id_ in transcripts.texts:
            assert transcripts.texts[id_] == text or is_torn
        else:
            assert f": {id_}: no transcript" in named


@SETTINGS
@hypothesis.given(
    IDS, st.lists(st.integers(1, 3), min_size=6, max_size=6), st.sampled_from(sorted(CAREFUL))
)
def test_folds(tmp_path_factory: Any, ids: list[str], folds: list[int], kind: str) -> None:
    ending, write = CAREFUL[kind]
    path = tmp_path_factory.getbasetemp() / f"folds.{ending}"
    rows = [{"Id": id_, "Fold": fold} for id_, fold in zip(ids, folds, strict=False)]
    write(path, rows)

    tested = {fold.name: fold.ids["test"] for fold in read_folds(path)}
    for row in rows:
        assert row["Id"] in tested[str(row["Fold"])]
    assert sum(len(names) for names in tested.values()) == len(ids)


# Features
# ----------------------------------------

QUANTITIES = st.sampled_from([0.0, 1.0, 2.0, 3.0, -0.5, 1e-7, 12345.678, 0.1])
DIMENSIONS = st.sampled_from([["f0", "f1"], ["0", "1", "2"], ["a"], ["0"], ["1"], ["x;y", "z,a"]])


def frame_of(values: list[list[float]], columns: list[str], ids: list[str]) -> pd.DataFrame:
    rows = [row[: len(columns)] for row in values[: len(ids)]]
    return pd.DataFrame(rows, index=ids, columns=columns)


def write_smile(path: Path, frame: pd.DataFrame) -> None:
    """As openSMILE's package for Python."""
    files = [f"{id_}.wav" for id_ in frame.index]
    table = frame.set_index(pd.Index(files, name="file"))
    table.insert(0, "start", pd.Timedelta(0))
    table.insert(1, "end", pd.Timedelta(1.5, "s"))
    table.to_csv(path)


def write_r(path: Path, frame: pd.DataFrame) -> None:
    """As `write.csv` of R: texts and names are quoted, names of rows have no heading."""
    frame.to_csv(path, quoting=csv.QUOTE_NONNUMERIC)


def write_again(path: Path, frame: pd.DataFrame) -> None:
    """An index that was read as a column, and saved."""
    frame.reset_index(drop=True).to_csv(path)
    pd.read_csv(path).to_csv(path, index=False)


def write_r_again(path: Path, frame: pd.DataFrame) -> None:
    """Names of rows that `read.csv` of R takes for a column X."""
    counted = frame.reset_index(drop=True)
    counted.insert(0, "X", range(1, len(frame) + 1))
    counted.to_csv(path, index=False)


# With the ids, if they are written.
Writer = Callable[[Path, pd.DataFrame], None]
WITH_IDS: dict[str, Writer] = {
    "an index": lambda path, frame: frame.to_csv(path),
    "an index called id": lambda path, frame: frame.to_csv(path, index_label="id"),
    "Excel": lambda path, frame: frame.to_csv(path, index_label="ID", sep=";", decimal=","),
    "tabs": lambda path, frame: frame.to_csv(path, index_label="Id", sep="\t"),
    "all quoted": lambda path, frame: frame.to_csv(path, index_label="id", quoting=csv.QUOTE_ALL),
    "R": write_r,
    "openSMILE": write_smile,
}
WITHOUT_IDS: dict[str, Writer] = {
    "values": lambda path, frame: frame.to_csv(path, index=False),
    "values alone": lambda path, frame: frame.to_csv(path, index=False, header=False),
    "Excel": lambda path, frame: frame.to_csv(path, index=False, sep=";", decimal=","),
    "an index of numbers": lambda path, frame: frame.reset_index(drop=True).to_csv(path),
    "an index and no header": lambda path, frame: frame.reset_index(drop=True).to_csv(
        path, header=False
    ),
    "an index read again": write_again,
    "an index called index": lambda path, frame: frame.reset_index().to_csv(path, index=False),
    "an index of R": write_r_again,
}
VALUES = st.lists(st.lists(QUANTITIES, min_size=3, max_size=3), min_size=4, max_size=4)
ROW_NAMES = st.sampled_from([["u1", "u2", "u3", "u4"], ["2", "0", "1", "7"], ["b", "a", "c"]])


@SETTINGS
@hypothesis.given(VALUES, DIMENSIONS, ROW_NAMES, st.sampled_from(sorted(WITH_IDS)))
def test_features_by_id(
    tmp_path_factory: Any,
    values: list[list[float]],
    columns: list[str],
    ids: list[str],
    kind: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "by_id.csv"
    frame = frame_of(values, columns, ids)
    WITH_IDS[kind](path, frame)
    check_features(path, frame, ids, kind)


@SETTINGS
@hypothesis.given(VALUES, DIMENSIONS, ROW_NAMES, st.sampled_from(sorted(WITHOUT_IDS)))
def test_features_in_order(
    tmp_path_factory: Any,
    values: list[list[float]],
    columns: list[str],
    ids: list[str],
    kind: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "in_order.csv"
    frame = frame_of(values, columns, ids)
    WITHOUT_IDS[kind](path, frame)
    check_features(path, frame, None, kind)


def check_features(path: Path, frame: pd.DataFrame, ids: list[str] | None, kind: str) -> None:
    """The values are those of their ids, without an index among them, or the table is refused."""
    try:
        table = read_feature_table(path)
    except StoreError as error:
        hypothesis.event(f"{kind}: refused")
        assert any(word in str(error) for word in ("index", "--no-header", "columns where"))
        return

    hypothesis.event(f"{kind}: read")
    assert table.ids == ids
    assert np.array_equal(table.values, frame.to_numpy())
