"""Tables as programs and people write them: careful writers, and one that knows no quotation."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .drawn_tables import DrawnTable, as_text, as_typed

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Writer:
    """A way to write a table."""

    ending: str
    write: Callable[[Path, Rows], None]
    is_typed: bool = False
    """Whether it keeps numbers, lists and holes apart from texts."""
    line_breaks: str = "kept"
    """Line breaks within a cell are "kept", "refused" with their line, or "gone" before."""
    marks_matter: bool = True
    """Whether a quotation mark that comes out is one that went in."""
    encoding: str = "utf-8"

    def as_written(self, value: Any) -> Any:
        """A value as it stands in the file."""
        if self.is_typed:
            return as_typed(value)
        text = as_text(value)
        if self.line_breaks == "gone":
            text = text.replace("\r\n", " ").replace("\n", " ")
        return text

    def columns(self, table: DrawnTable) -> dict[str, list[Any]]:
        """The columns of a table as they stand in the file."""
        return {
            column: [self.as_written(value) for value in values]
            for column, values in table.columns.items()
        }

    def can_write(self, table: DrawnTable) -> bool:
        """Whether the encoding has all characters of a table, and what it writes is no other."""
        text = json.dumps(table.rows(as_text), ensure_ascii=False) + "".join(
            table.headings.values()
        )
        if self.encoding == "cp1252":
            # Only what is no UTF-8 is read so.
            try:
                content = text.encode("cp1252")
            except UnicodeError:
                return False
            return any(byte > 127 for byte in content)
        return True

    def refuses(self, table: DrawnTable) -> bool:
        """Whether what is written may be refused: a cell of it breaks the line."""
        if self.line_breaks != "kept" or self.is_typed:
            return False
        return any("\n" in as_text(text) for text in table.columns.get("text", []))


def csv_text(rows: Rows, **how: Any) -> str:
    """The text of a CSV as the csv module writes it."""
    sink = io.StringIO()
    sheet = csv.DictWriter(sink, list(rows[0]), **how)
    sheet.writeheader()
    sheet.writerows(rows)
    return sink.getvalue()


def _csv(encoding: str = "utf-8", **how: Any) -> Callable[[Path, Rows], None]:
    def write(path: Path, rows: Rows) -> None:
        path.write_bytes(csv_text(rows, **how).encode(encoding))

    return write


def _pandas(**how: Any) -> Callable[[Path, Rows], None]:
    def write(path: Path, rows: Rows) -> None:
        pd.DataFrame(rows).to_csv(path, **how)

    return write


def _unquoted(delimiter: str) -> Callable[[Path, Rows], None]:
    def write(path: Path, rows: Rows) -> None:
        lines = [delimiter.join(rows[0])]
        for row in rows:
            lines.append(delimiter.join(row.values()))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")

    return write


def _jsonl(**how: Any) -> Callable[[Path, Rows], None]:
    def write(path: Path, rows: Rows) -> None:
        lines = [json.dumps(row, **how) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8", newline="")

    return write


def _jsonl_without_holes(path: Path, rows: Rows) -> None:
    _jsonl()(path, [{key: value for key, value in row.items() if value != ""} for row in rows])


def _parquet(path: Path, rows: Rows) -> None:
    pq.write_table(_arrow(rows), path, row_group_size=2)


def _parquet_of_codes(path: Path, rows: Rows) -> None:
    table = _arrow(rows)
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(place, field.name, table[field.name].dictionary_encode())
    pq.write_table(table, path)


def _parquet_of_pandas(path: Path, rows: Rows) -> None:
    pd.DataFrame(rows).to_parquet(path)


def _arrow(rows: Rows) -> pa.Table:
    columns = {}
    for heading in rows[0]:
        values = [row[heading] for row in rows]
        if any(isinstance(value, float) for value in values):
            values = [float(value) if isinstance(value, int) else value for value in values]
        columns[heading] = values
    return pa.table(columns)


WRITERS = {
    "commas": Writer("csv", _csv()),
    "semicolons": Writer("csv", _csv(delimiter=";")),
    "all quoted": Writer("csv", _csv(quoting=csv.QUOTE_ALL)),
    "lines of Unix": Writer("csv", _csv(lineterminator="\n")),
    "a mark of UTF-8": Writer("csv", _csv("utf-8-sig")),
    "UTF-16": Writer("csv", _csv("utf-16")),
    "UTF-16 without a mark": Writer("csv", _csv("utf-16-le")),
    "Windows": Writer("csv", _csv("cp1252"), encoding="cp1252"),
    "an Excel in German": Writer("csv", _csv("cp1252", delimiter=";"), encoding="cp1252"),
    "pandas": Writer("csv", _pandas(index=False)),
    "pandas with its index": Writer("csv", _pandas()),
    "tabs": Writer("tsv", _csv(delimiter="\t"), line_breaks="gone"),
    "tabs in a CSV": Writer("csv", _csv(delimiter="\t"), line_breaks="gone"),
    "tabs, all quoted": Writer(
        "tsv", _csv(delimiter="\t", quoting=csv.QUOTE_ALL), line_breaks="gone"
    ),
    "tabs by pandas": Writer("tsv", _pandas(index=False, sep="\t"), line_breaks="gone"),
    "JSON": Writer("jsonl", _jsonl(), is_typed=True),
    "JSON of letters": Writer("jsonl", _jsonl(ensure_ascii=False), is_typed=True),
    "JSON without holes": Writer("jsonl", _jsonl_without_holes),
    "Parquet": Writer("parquet", _parquet, is_typed=True),
    "Parquet of codes": Writer("parquet", _parquet_of_codes, is_typed=True),
    "Parquet by pandas": Writer("parquet", _parquet_of_pandas, is_typed=True),
}

# Nobody can say whether a mark belongs to a cell of theirs; all else has to come out.
UNQUOTED = {
    "tabs": Writer("tsv", _unquoted("\t"), line_breaks="gone", marks_matter=False),
    "commas": Writer("csv", _unquoted(","), line_breaks="gone", marks_matter=False),
    "semicolons": Writer("csv", _unquoted(";"), line_breaks="gone", marks_matter=False),
}
