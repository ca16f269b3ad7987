"""Tables of a report: values with their kind, and the ways to write them down.

A score is a share in [0, 1] and is shown in percent. Text may come from anywhere: whoever writes a table escapes it.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from ser.errors import unknown
from ser.train.scores import Interval

# text: str · count: int · percent, points: float share · interval: Interval · spread: (mean, deviation | None) ·
# p: probability of a test · number: float
Kind = Literal["text", "count", "percent", "points", "interval", "spread", "p", "number"]


@dataclass(frozen=True)
class Column:
    """A column's heading and what its values are."""

    name: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """Rows of values, one per column; None where there is none."""

    name: str  # of letters and hyphens: its file and its anchor
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.name}: a row has not one value for each of {len(self.columns)} columns")


def shown(value: Any, kind: Kind) -> str:
    """A value as a reader sees it.

    >>> shown(0.76412, "percent"), shown((0.5, 0.011), "spread"), shown(0.0004, "p")
    ('76.4', '50.0 ± 1.1', '< 0.001')
    """
    if value is None:
        return "–"
    match kind:
        case "count":
            return f"{value:,}"
        case "percent":
            return f"{100 * value:.1f}"
        case "points":
            return f"{100 * value:+.1f}".replace("-", "−")
        case "interval":
            return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
        case "spread":
            mean, deviation = value
            return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
        case "p":
            return "< 0.001" if value < 0.001 else f"{value:.3f}"
        case "number":
            return f"{value:.3g}"
        case _:
            return str(value)


def percent(share: float) -> str:
    """A share in running text.

    >>> percent(0.7641)
    '76 %'
    """
    return f"{100 * share:.0f} %"


def _exact(value: Any, kind: Kind) -> list[str]:
    """A value as the cells of a CSV file, scores in percent to four digits."""
    width = {"interval": 3, "spread": 2}.get(kind, 1)
    if value is None:
        return [""] * width
    match kind:
        case "percent" | "points":
            return [f"{100 * value:.4f}"]
        case "interval":
            return [f"{100 * end:.4f}" for end in (value.value, value.low, value.high)]
        case "spread":
            return [*_exact(value[0], "percent"), *_exact(value[1], "percent")]
        case "count":
            return [str(value)]
        case "p" | "number":
            return [f"{value:.6g}"]
        case _:
            return [harmless(str(value))]


def harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def to_csv(table: Table) -> str:
    """One header line; intervals and spreads take a column for each of their numbers."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    heading: list[str] = []
    for column in table.columns:
        name = harmless(column.name)
        heading += {"interval": [name, f"{name} low", f"{name} high"], "spread": [name, f"{name} deviation"]}.get(
            column.kind, [name]
        )
    writer.writerow(heading)
    for row in table.rows:
        cells = (_exact(value, column.kind) for value, column in zip(row, table.columns, strict=True))
        writer.writerow([cell for group in cells for cell in group])
    return sink.getvalue()


_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "} | {c: f"\\{c}" for c in "\\|`*_[]#~$"}
)
_LATEX: dict[str, str | int | None] = {
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "…": r"\dots{}",
    "\u200b": "{}",
}


def to_markdown(table: Table) -> str:
    """A heading, the table and its note."""
    body = _tabulated(table, "pipe", lambda text: text.translate(_MARKDOWN))
    note = f"\n{table.note.translate(_MARKDOWN)}\n" if table.note else ""
    return f"### {table.caption.translate(_MARKDOWN)}\n\n{body}\n{note}"


def to_latex(table: Table) -> str:
    """A `table` environment in booktabs' style."""
    # After a line's end, LaTeX takes a bracket for a length.
    body = _tabulated(table, "latex_booktabs", lambda text: _unbracketed(" ".join(text.split())))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.caption)}}}", rf"\label{{tab:{table.name}}}"]
    note = [rf"\par\small {_latex(table.note)}"] if table.note else []
    text = "\n".join([*lines, body, *note, r"\end{table}"])
    return text.translate(str.maketrans(_LATEX)) + "\n"


def _unbracketed(text: str) -> str:
    return f"\u200b{text}" if text.startswith("[") else text


def _latex(text: str) -> str:
    """Text with LaTeX's special characters escaped, as tabulate does in the table's cells."""
    return (
        tabulate([[text]], tablefmt="latex_booktabs", disable_numparse=True).splitlines()[2].removesuffix(r"\\").strip()
    )


def _tabulated(table: Table, style: str, escape: Callable[[str], str]) -> str:
    rows = [
        [escape(shown(value, column.kind)) for value, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    return tabulate(
        rows,
        headers=[escape(column.name) for column in table.columns],
        tablefmt=style,
        colalign=["left" if column.kind == "text" else "right" for column in table.columns] if rows else None,
        disable_numparse=True,
    )


def write_tables(tables: Sequence[Table], path: Path, form: Literal["markdown", "latex", "csv"]) -> None:
    """Write all tables into one file; in CSV one after the other, each below a line with its caption."""
    match form:
        case "markdown":
            text = "\n".join(map(to_markdown, tables))
        case "latex":
            text = "% needs \\usepackage{booktabs}\n\n" + "\n".join(map(to_latex, tables))
        case "csv":
            text = "\n".join(f"{_csv_line(table.caption)}{to_csv(table)}" for table in tables)
        case _:
            raise unknown("form of tables", form, ("markdown", "latex", "csv"))
    path.write_text(text, encoding="utf-8")


def _csv_line(text: str) -> str:
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerow([harmless(text)])
    return sink.getvalue()


__all__ = [
    "Column",
    "Interval",
    "Kind",
    "Table",
    "percent",
    "shown",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_tables",
]
