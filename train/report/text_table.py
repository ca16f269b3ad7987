"""A table as lines of text, in one of tabulate's styles."""

from collections.abc import Callable

from .table import Table


def tabulated(table: Table, style: str = "simple", escape: Callable[[str], str] = str) -> str:
    """The table in one of tabulate's styles, numbers to the right."""
    from tabulate import tabulate

    lines = []
    for texts in table.texts:
        lines.append([escape(text) for text in texts])
    headings = [escape(heading) for heading in table.headings]
    sides = []
    for column in table.shown_columns:
        sides.append("right" if table.to_the_right(column) else "left")
    return tabulate(lines, headers=headings, tablefmt=style, colalign=sides, disable_numparse=True)
