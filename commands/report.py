"""`ser report`: finished runs as tables on the terminal, in a paper, and as a page."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import FILE, decimal_option, open_option
from .output import answer, next_step, open_page, plural, progress, terminal_width

if TYPE_CHECKING:
    from ser.train.report.cell import Cells
    from ser.train.report.sections.importance import Importance


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FILE)
@click.option(
    "--html",
    type=FILE,
    metavar="FILE",
    help="Write one self-contained page: tables, plots and attention.",
)
@click.option(
    "--latex",
    type=FILE,
    metavar="FILE",
    help="Write tables that fit a paper's column, cells by the recipe's names (LaTeX, booktabs).",
)
@click.option(
    "--latex-all",
    type=FILE,
    metavar="FILE",
    help="Write every table with every column for LaTeX (booktabs).",
)
@click.option(
    "--figures",
    type=FILE,
    metavar="DIR",
    help="Write each figure as PDF, SVG and PNG, with its numbers as CSV.",
)
@click.option("--markdown", type=FILE, metavar="FILE", help="Write every table as Markdown.")
@click.option("--csv", type=FILE, metavar="FILE", help="Write every table as CSV.")
@decimal_option
@click.option(
    "--tables",
    metavar="NAME,…",
    default="",
    help="Print these tables with every column, such as calibration,raters,settings; or all.",
)
@click.option(
    "--paired",
    is_flag=True,
    help="Test whether the cells differ, over speakers or dialogues; and as papers do.",
)
@click.option(
    "--ours",
    metavar="CELL",
    default="",
    help="Your cell, by its label: tested against each of the others.",
)
@click.option(
    "--importance",
    is_flag=True,
    help="Say what each cell's score loses without each group of its features, such as pitch or "
    "formants of openSMILE's; reads them from the store that the runs were trained from.",
)
@click.option(
    "--with-text",
    is_flag=True,
    help="Show transcripts too, if the corpus's licence lets you pass them on; those of generated "
    "speech are always shown.",
)
@open_option
def report(
    runs: tuple[Path, ...],
    html: Path | None,
    decimal: str,
    latex: Path | None,
    figures: Path | None,
    tables: str,
    paired: bool,
    ours: str,
    importance: bool,
    with_text: bool,
    open_: bool,
    **files: Path | None,
) -> None:
    """Tables of RUNS (run folders, or folders of them), one line per configuration, with 95 %
    intervals.

    \b
    Examples:
      ser report runs
      ser report runs --html report.html --latex tables.tex --figures figures
      ser report runs --paired --ours mit
      ser report runs --tables calibration,raters
      ser report runs --importance
    """
    if open_ and html is None:
        raise click.UsageError(
            "--open shows the page that --html writes: name it, such as --html report.html"
        )
    if decimal != "." and files["csv"] is None and figures is None:
        raise click.UsageError(
            "--decimal is for --csv and --figures; add --csv FILE, or leave it out"
        )
    from ser.train.report.figure_files import write_figures
    from ser.train.report.files import write_paper_tables, write_tables
    from ser.train.report.grouping import group_runs
    from ser.train.report.page import make_page, write_html
    from ser.train.report.terminal import report_text
    from ser.train.run_folder import find_runs
    from ser.train.sweep.search_record import find_search_records

    cells, unfinished = group_runs(find_runs(*runs), find_search_records(*runs), ours, with_text)
    names = [name.strip() for name in tables.split(",") if name.strip()]
    measured = _measure_importance(cells) if importance else []
    answer(report_text(cells, unfinished, paired, names, terminal_width(), measured))

    # In the order in which they are named.
    requested = {form: path for form, path in files.items() if path is not None}
    if html is None and latex is None and figures is None and not requested:
        next_step("report", *runs, "--html", "report.html", "--open")
        return

    if latex is not None:
        write_paper_tables(cells, latex)
        answer(f"wrote {latex}")
    if html is None and figures is None and not requested:
        return

    page = make_page(cells, unfinished, measured)
    if html is not None:
        write_html(page, html)
        answer(f"wrote {html}")
    for form, path in requested.items():
        write_tables(page.tables, path, form, decimal)
        answer(f"wrote {path}")
    if figures is not None:
        write_figures(page.plots, figures, decimal)
        answer(f"wrote {plural(len(page.plots), 'figure')} into {figures}")
    if html is not None:
        open_page(html, open_)


def _measure_importance(cells: "Cells") -> "list[Importance]":
    """What each cell loses without each group of its features."""
    from ser.predict.importance import importances

    found = []
    for cell in cells:
        with progress(len(cell.runs), f"importance of {cell.label}", "run") as bar:

            def update(done: int, total: int) -> None:
                if done == total:
                    bar.update()

            found += importances(cell.runs, cell.label, on_progress=update)
    return found
