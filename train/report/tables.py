"""Tables of a report, written for a terminal, Markdown, LaTeX and CSV.

Every score and share is in percent and is shown with two decimals. Text may come from anywhere:
whoever writes a table escapes it.
"""

import csv
import io
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ser.disk.write import write_whole

TEXTS = tomllib.loads(Path(__file__).with_name("texts.toml").read_text(encoding="utf-8"))

# How numbers are shown, and written into a CSV file, by the last word of their heading.
_FORMS = {"%": ("{:.2f}", "{:.4f}"), "difference": ("{:+.2f}", "{:.4f}"), "p": ("{:.3f}", "{:.6g}")}
_FINE = {"CCC", "RMSE", "KL", "JS"}  # words of headings: their numbers are not in percent
_ENDS = {
    1: ("",),
    2: ("", " deviation"),
    3: ("", " low", " high"),
}  # of headings, by the numbers below

# Values by heading: text, an int that counts, a float, an interval (value and ends or None), or a
# spread (mean, deviation or None). None and NaN are no value.
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of values; None, or no such heading, where there is none. A table without rows is false.

    One with a `title` stands behind its plot in the page.
    """

    name: str  # of letters, digits and hyphens: its anchor and its label
    caption: str
    rows: Sequence[Row]
    note: str = ""
    folded: bool = False  # behind its caption in the page
    title: str = ""
    below: str = ""  # the plot's note
    points: Any = None  # what is plotted
    plot: Mapping[str, Any] = field(default_factory=dict)  # see figures.py

    def __bool__(self) -> bool:
        return bool(self.rows)

    @cached_property
    def columns(self) -> dict[str, Any]:
        """Headings, and the first value below each; where there is none, "" or, in a column of
        numbers, 0.0.
        """
        first: Row = {
            heading: 0.0 if _last(heading) in _FORMS else "" for row in self.rows for heading in row
        }
        for row in reversed(self.rows):
            first |= {heading: value for heading, value in row.items() if value is not None}
        return first

    @cached_property
    def texts(self) -> list[list[str]]:
        """The rows as a reader sees them."""
        return [[shown(row.get(heading), heading) for heading in self.columns] for row in self.rows]


def described(
    texts: str, rows: Sequence[Row], *sentences: str, points: Any = None, **fields: Any
) -> Table:
    """A table and, if it has `points`, its plot with the texts of that name in texts.toml, filled
    in with `fields`.

    `sentences`, if any, end the note, of the plot if there is one. Its own name is that of the
    texts, or a field; a field `baseline` is where the plot has a dashed line.
    """
    words = {
        which: text_of(texts, which, fields) for which in ("caption", "note", "title", "below")
    }
    last = "note" if points is None else "below"
    words[last] = " ".join(filter(None, [words[last], *sentences]))
    options = TEXTS[texts].get("plot", {}) | (
        {"baseline": fields["baseline"]} if "baseline" in fields else {}
    )
    plot = {
        key: value.format_map(fields) if isinstance(value, str) else value
        for key, value in options.items()
    }
    name, folded = fields.get("name", texts), TEXTS[texts].get("folded", False)
    return Table(name, rows=rows, folded=folded, points=points, plot=plot, **words)


def text_of(texts: str, which: str, fields: Mapping[str, Any]) -> str:
    """One text in texts.toml with its {fields} filled in; "" if there is none."""
    return TEXTS[texts].get(which, "").strip().replace("\n", " ").format_map(fields)


def sentence(which: str, holds: object = True, **fields: Any) -> str:
    """What ends a note where it holds, else ""."""
    return text_of("sentences", which, fields) if holds else ""


def columns(rows: Sequence[Row], *headings: str) -> list[Any]:
    """The values below these headings, as a tuple for each row: the points of a plot."""
    return [tuple(row[heading] for heading in headings) for row in rows]


def evenly(n: int, most: int) -> list[int]:
    """At most so many of n places, evenly spread."""
    return np.linspace(0, n - 1, min(most, n)).round().astype(int).tolist()


def shown(value: Any, heading: str) -> str:
    """A value as a reader sees it.

    >>> shown(76.412, "UA %"), shown((50.0, 1.1), "UA %"), shown((50, 40, 60), "UA %"), shown(0.0004, "p")
    ('76.41', '50.00 ± 1.10', '50.00 [40.00, 60.00]', '< 0.001')
    >>> shown((1.5, -0.25, 3.25), "UA difference"), shown((50, None, None), "UA %"), shown(12345, "n")
    ('+1.50 [−0.25, +3.25]', '50.00', '12,345')
    """
    if isinstance(value, tuple):
        first, *others = [shown(float(number), heading) for number in value if number is not None]
        return (
            f"{first} [{', '.join(others)}]" if len(others) == 2 else " ± ".join([first, *others])
        )
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return f"{value:,}"
    if _last(heading) == "p" and value < 0.001:
        return "< 0.001"
    text = _forms(heading)[0].format(value)
    return text if "e" in text else text.replace("-", "−")


def _forms(heading: str) -> tuple[str, str]:
    other = ("{:.3g}", "{:.6g}") if _FINE.isdisjoint(heading.split()) else ("{:.3f}", "{:.4f}")
    return _FORMS.get(_last(heading), other)


def _last(heading: str) -> str:
    return heading.rpartition(" ")[2]


def harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _exact(value: Any, heading: str, n: int = 1) -> list[str]:
    """What a CSV file holds of a value in n columns: each number of an interval or a spread, any
    other by itself.
    """
    if value is None or value != value:
        return [""] * n
    if isinstance(value, tuple):
        return [
            text
            for number in value
            for text in _exact(number if number is None else float(number), heading)
        ]
    if isinstance(value, Real) and not isinstance(value, Integral):
        return [_forms(heading)[1].format(value)]
    return [harmless(str(value))]


def to_csv(table: Table) -> str:
    """A line with the caption, one with the headings; intervals and spreads take a column for each
    of their numbers.
    """
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    ends = {
        heading: _ENDS[len(first) if isinstance(first, tuple) else 1]
        for heading, first in table.columns.items()
    }
    writer.writerow([harmless(table.caption)])
    writer.writerow([f"{harmless(heading)}{end}" for heading, of in ends.items() for end in of])
    for row in table.rows:
        writer.writerow(
            [text for name, of in ends.items() for text in _exact(row.get(name), name, len(of))]
        )
    return sink.getvalue()


MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "}
    | {c: f"\\{c}" for c in "\\|`*_[]#~$"}
)
_LATEX = str.maketrans(
    {
        "±": r"$\pm$",
        "·": r"$\cdot$",
        "×": r"$\times$",
        "≤": r"$\le$",
        "−": "$-$",
        "–": "--",
        "…": r"\dots{}",
    }
    | {"\u200b": "{}"}
)


def tabulated(table: Table, style: str = "simple", escape: Callable[[str], str] = str) -> str:
    """The table in one of tabulate's styles, numbers to the right."""
    from tabulate import tabulate

    return tabulate(
        [[escape(text) for text in row] for row in table.texts],
        headers=[escape(heading) for heading in table.columns],
        tablefmt=style,
        colalign=[
            "left" if isinstance(first, str) else "right" for first in table.columns.values()
        ],
        disable_numparse=True,
    )


def to_markdown(table: Table) -> str:
    """A heading, the table and its note."""
    body = tabulated(table, "pipe", lambda text: text.translate(MARKDOWN))
    note = f"\n{table.note.translate(MARKDOWN)}\n" if table.note else ""
    return f"### {table.caption.translate(MARKDOWN)}\n\n{body}\n{note}"


def to_latex(table: Table) -> str:
    """A `table` environment in booktabs' style; tabulate escapes LaTeX's special characters in its
    cells.
    """
    from tabulate import LATEX_ESCAPE_RULES

    # After a line's end, LaTeX takes a bracket for a length.
    body = tabulated(
        table,
        "latex_booktabs",
        lambda text: "\u200b" * text.startswith("[") + " ".join(text.split()),
    )
    escaped = str.maketrans(LATEX_ESCAPE_RULES)
    caption, note = (
        " ".join(text.split()).translate(escaped) for text in (table.caption, table.note)
    )
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{table.name}}}",
        body,
    ]
    lines += [rf"\par\small {note}"] if note else []
    lines += [r"\end{table}"]
    return (
        "\n".join(lines).replace("--", "-{}-").translate(_LATEX) + "\n"
    )  # two hyphens would be a dash


def write_tables(
    tables: Sequence[Table], path: Path, form: Literal["markdown", "latex", "csv"]
) -> None:
    """Write all tables into one file, one after the other."""
    write = {"markdown": to_markdown, "latex": to_latex, "csv": to_csv}[form]
    opening = "% needs \\usepackage{booktabs}\n\n" if form == "latex" else ""
    write_whole(path, (opening + "\n".join(map(write, tables))).encode())
