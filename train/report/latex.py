"""Tables in LaTeX, in booktabs' style."""

from .table import Table
from .text_table import tabulated

OPENING = "% needs \\usepackage{booktabs}\n\n"
_NOTHING = "\u200b"  # becomes {}, which shows nothing
_SIGNS = str.maketrans(
    {
        "±": r"$\pm$",
        "·": r"$\cdot$",
        "×": r"$\times$",
        "≤": r"$\le$",
        "−": "$-$",
        "–": "--",
        "…": r"\dots{}",
        _NOTHING: "{}",
    }
)


def to_latex(table: Table) -> str:
    """A `table` environment; tabulate escapes LaTeX's special characters in its cells."""
    from tabulate import LATEX_ESCAPE_RULES

    escapes = str.maketrans(LATEX_ESCAPE_RULES)
    caption = _on_one_line(table.caption).translate(escapes)
    note = _on_one_line(table.note).translate(escapes)

    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{table.name}}}",
        tabulated(table, "latex_booktabs", _cell_text),
    ]
    if note:
        lines.append(rf"\par\small {note}")
    lines.append(r"\end{table}")

    # Two hyphens would be a dash.
    text = "\n".join(lines).replace("--", "-{}-")
    return text.translate(_SIGNS) + "\n"


def _cell_text(text: str) -> str:
    """Text for a cell: after a line's end, LaTeX takes a bracket for a length."""
    on_one_line = _on_one_line(text)
    return _NOTHING + on_one_line if text.startswith("[") else on_one_line


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
