"""A report's tables in one file."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ser.disk.write import write_whole

from .cell import Cells
from .csv_file import to_csv
from .latex import OPENING, OPENING_FOR_PAPERS, paper_to_latex, to_latex
from .markdown import to_markdown
from .paper_tables import paper_tables
from .table import Table

FORMS = {"markdown": to_markdown, "latex_all": to_latex, "csv": to_csv}


def write_tables(tables: Sequence[Table], path: Path, form: str, decimal: str = ".") -> None:
    """Write all tables into one file, one after the other; `form` is one of `FORMS`.

    The numbers of a CSV have a `decimal` point or comma.
    """
    to_form = partial(to_csv, decimal=decimal) if form == "csv" else FORMS[form]
    written = [to_form(table) for table in tables]
    opening = OPENING if form == "latex_all" else ""
    write_whole(path, (opening + "\n".join(written)).encode())


def write_paper_tables(cells: Cells, path: Path) -> None:
    """Write the `paper_tables` of these cells into one file, for LaTeX."""
    written = [paper_to_latex(table) for table in paper_tables(cells)]
    write_whole(path, (OPENING_FOR_PAPERS + "\n".join(written)).encode())
