"""Tables of a report, written for a terminal, Markdown, LaTeX and CSV.

Every score and share is in percent and is shown with two decimals. Text may come from anywhere: whoever writes a table
escapes it.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from ser.cache.atomic_io import write_whole

# How a float is shown follows from the last word of its heading; a tuple is an interval (value and ends or None) or a
# spread (mean, deviation or None), an int a count, the rest text.
_FLOATS = {"%": "percent", "difference": "points", "p": "p"}
_ENDS = ("", " low", " high")
_FINE = {"CCC", "RMSE", "KL", "JS"}  # a heading with one of these words is about numbers that are not in percent
_INTERVALS = {"interval": "percent", "signed interval": "points", "fine interval": "fine"}  # how their values are shown
_ENDINGS: Mapping[str, tuple[str, ...]] = dict.fromkeys(_INTERVALS, _ENDS) | {"spread": ("", " deviation")}
_SHOWN = {
    "count": "{:,}",
    "percent": "{:.2f}",
    "points": "{:+.2f}",
    "p": "{:.3f}",
    "number": "{:.3g}",
    "fine": "{:.3f}",
}
_EXACT = {"count": "{}", "p": "{:.6g}", "number": "{:.6g}"}  # in a CSV file; the others to four digits


Row = dict[str, Any]  # values by heading


@dataclass(frozen=True)
class Table:
    """Rows of values; None, or no such heading, where there is none. A table without rows is false."""

    name: str  # of letters, digits and hyphens: its anchor and its label
    caption: str
    rows: Sequence[Row]
    note: str = ""
    folded: bool = False  # behind its caption in the page

    def __bool__(self) -> bool:
        return bool(self.rows)

    @cached_property
    def columns(self) -> dict[str, str]:
        """Headings, and the kind of the values below."""
        found = {heading: "text" for row in self.rows for heading in row}
        for heading in found:
            value = next((row[heading] for row in self.rows if row.get(heading) is not None), None)
            fine = not _FINE.isdisjoint(heading.split())
            if isinstance(value, Integral):
                found[heading] = "count"
            elif isinstance(value, tuple):
                kind = "fine " if fine else "signed " if heading.endswith("difference") else ""
                found[heading] = f"{kind}interval" if len(value) == 3 else "spread"
            elif value is None or isinstance(value, Real):
                usual = "text" if value is None else "fine" if fine else "number"
                found[heading] = _FLOATS.get(heading.rpartition(" ")[2], usual)
        return found

    @cached_property
    def texts(self) -> list[list[str]]:
        """The rows as a reader sees them."""
        return [[shown(row.get(heading), kind) for heading, kind in self.columns.items()] for row in self.rows]


def shown(value: Any, kind: str) -> str:
    """A value as a reader sees it.

    >>> shown(76.412, "percent"), shown((50.0, 1.1), "spread"), shown((50, 40, 60), "interval"), shown(0.0004, "p")
    ('76.41', '50.00 ± 1.10', '50.00 [40.00, 60.00]', '< 0.001')
    >>> shown((1.5, -0.25, 3.25), "signed interval"), shown((50, None, None), "interval")
    ('+1.50 [−0.25, +3.25]', '50.00')
    """
    if value is None:
        return "–"
    if kind in _INTERVALS:
        first, *ends = [shown(one, _INTERVALS[kind]) for one in value]
        return first if None in value else f"{first} [{', '.join(ends)}]"
    if kind == "spread":
        return " ± ".join(f"{number:.2f}" for number in value if number is not None)
    if kind == "p" and value < 0.001:
        return "< 0.001"
    text = _SHOWN.get(kind, "{}").format(value)
    return text.replace("-", "−") if kind in ("points", "fine") else text


def harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _exact(value: Any, kind: str) -> list[str]:
    """A value as the cells of a CSV file."""
    values = value if isinstance(value, tuple) else [value] * len(_ENDINGS.get(kind, [""]))
    if kind == "text":
        return ["" if value is None else harmless(str(value))]
    return ["" if one is None else _EXACT.get(kind, "{:.4f}").format(one) for one in values]


def to_csv(table: Table) -> str:
    """A line with the caption, one with the headings; intervals and spreads take a column for each of their numbers."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    columns = table.columns.items()
    writer.writerow([harmless(table.caption)])
    writer.writerow([f"{harmless(heading)}{end}" for heading, kind in columns for end in _ENDINGS.get(kind, ("",))])
    writer.writerows([cell for h, kind in columns for cell in _exact(row.get(h), kind)] for row in table.rows)
    return sink.getvalue()


MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "} | {c: f"\\{c}" for c in "\\|`*_[]#~$"}
)
_LATEX = str.maketrans(
    {"±": r"$\pm$", "·": r"$\cdot$", "×": r"$\times$", "≤": r"$\le$", "−": "$-$", "–": "--", "…": r"\dots{}"}
    | {"\u200b": "{}"}
)


def tabulated(table: Table, style: str = "simple", escape: Callable[[str], str] = str) -> str:
    """The table in one of tabulate's styles, numbers to the right."""
    from tabulate import tabulate

    return tabulate(
        [[escape(text) for text in row] for row in table.texts],
        headers=[escape(heading) for heading in table.columns],
        tablefmt=style,
        colalign=["left" if kind == "text" else "right" for kind in table.columns.values()],
        disable_numparse=True,
    )


def to_markdown(table: Table) -> str:
    """A heading, the table and its note."""
    body = tabulated(table, "pipe", lambda text: text.translate(MARKDOWN))
    note = f"\n{table.note.translate(MARKDOWN)}\n" if table.note else ""
    return f"### {table.caption.translate(MARKDOWN)}\n\n{body}\n{note}"


def to_latex(table: Table) -> str:
    """A `table` environment in booktabs' style; tabulate escapes LaTeX's special characters in its cells."""
    # After a line's end, LaTeX takes a bracket for a length.
    body = tabulated(table, "latex_booktabs", lambda text: ("\u200b" if text.startswith("[") else "") + _one_line(text))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.caption)}}}", rf"\label{{tab:{table.name}}}"]
    lines += [body, *([rf"\par\small {_latex(table.note)}"] if table.note else []), r"\end{table}"]
    return "\n".join(lines).translate(_LATEX) + "\n"


def _latex(text: str) -> str:
    from tabulate import LATEX_ESCAPE_RULES

    return "".join(LATEX_ESCAPE_RULES.get(letter, letter) for letter in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def write_tables(tables: Sequence[Table], path: Path, form: Literal["markdown", "latex", "csv"]) -> None:
    """Write all tables into one file, one after the other."""
    write = {"markdown": to_markdown, "latex": to_latex, "csv": to_csv}[form]
    opening = "% needs \\usepackage{booktabs}\n\n" if form == "latex" else ""
    write_whole(path, (opening + "\n".join(map(write, tables))).encode())
