"""Tables in LaTeX, in booktabs' style: of a paper's column, or with every column."""

from .formats import P_VALUE
from .paper_tables import PaperRow, PaperTable
from .table import Table
from .text_table import tabulated

OPENING = "% needs \\usepackage{booktabs}\n\n"
OPENING_FOR_PAPERS = "% needs \\usepackage{booktabs,tabularx}\n\n"
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
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_prose(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        _signs(tabulated(table, "latex_booktabs", _cell_text)),
    ]
    if table.note:
        lines.append(rf"\par\small {_prose(table.note)}")
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def paper_to_latex(table: PaperTable) -> str:
    """A `table` environment as wide as its column; names of cells go to further lines."""
    numbers = "r" * (len(table.metrics) + len(table.of_paper) + table.tested)
    columns = rf"@{{}}>{{\raggedright\arraybackslash}}X{numbers}@{{}}"
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_prose(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabularx}}{{\columnwidth}}{{{columns}}}",
        r"\toprule",
        *_headings(table),
        r"\midrule",
    ]
    for row in table.rows:
        lines.append(_line(table, row))
    lines += [r"\bottomrule", r"\end{tabularx}"]
    if table.note:
        lines.append(rf"\par\smallskip\raggedright {_prose(table.note)}")
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _headings(table: PaperTable) -> list[str]:
    """Whose numbers they are, where there are the paper's too, and the metrics."""
    names = [table.heading(metric) for metric in [*table.metrics, *table.of_paper]]
    if table.tested:
        names.append("$p$")
    of_cells = " & ".join(["", *names]) + r" \\"
    if not table.of_paper:
        return [of_cells]

    ours = len(table.metrics)
    papers = len(table.of_paper)
    above = [rf"\multicolumn{{{ours}}}{{c}}{{ours}}", rf"\multicolumn{{{papers}}}{{c}}{{paper}}"]
    if table.tested:
        above.append("")
    return [
        " & ".join(["", *above]) + r" \\",
        rf"\cmidrule(lr){{2-{ours + 1}}}\cmidrule(lr){{{ours + 2}-{ours + papers + 1}}}",
        of_cells,
    ]


def _line(table: PaperTable, row: PaperRow) -> str:
    cells = [_prose(row.name)]
    for metric in table.metrics:
        shown = table.format.shown(row.ours[metric])
        cells.append(_signs(shown.replace(" ± ", "±")))
    for metric in table.of_paper:
        cells.append(_signs(table.format.shown(row.paper.get(metric))))
    if table.tested:
        cells.append(_signs(P_VALUE.shown(row.p)).replace("<", "$<$"))
    return " & ".join(cells) + r" \\"


def _prose(text: str) -> str:
    """Any text as it is."""
    from tabulate import LATEX_ESCAPE_RULES

    escapes: dict[str, str | int | None] = dict(LATEX_ESCAPE_RULES)
    return _signs(_on_one_line(text).translate(str.maketrans(escapes)))


def _signs(text: str) -> str:
    # Two hyphens would be a dash.
    return text.replace("--", "-{}-").translate(_SIGNS)


def _cell_text(text: str) -> str:
    """Text for a cell: after a line's end, LaTeX takes a bracket for a length."""
    on_one_line = _on_one_line(text)
    return _NOTHING + on_one_line if text.startswith("[") else on_one_line


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
