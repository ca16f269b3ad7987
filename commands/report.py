"""`ser report`: finished runs as tables on the terminal, in a paper, and as a page."""

from pathlib import Path

import click

from .options import FILE, decimal_option, open_option
from .output import answer, next_step, open_page, terminal_width


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FILE)
@click.option(
    "--html",
    type=FILE,
    metavar="FILE",
    help="Write one self-contained page: tables, plots and attention.",
)
@click.option("--latex", type=FILE, metavar="FILE", help="Write every table for LaTeX (booktabs).")
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
@open_option
def report(
    runs: tuple[Path, ...],
    html: Path | None,
    decimal: str,
    tables: str,
    paired: bool,
    ours: str,
    open_: bool,
    **files: Path | None,
) -> None:
    """Tables of RUNS (run folders, or folders of them), one line per configuration, with 95 %
    intervals.

    \b
    Examples:
      ser report runs
      ser report runs --html report.html --latex tables.tex
      ser report runs --paired --ours mit
      ser report runs --tables calibration,raters
    """
    if open_ and html is None:
        raise click.UsageError(
            "--open shows the page that --html writes: name it, such as --html report.html"
        )
    if decimal != "." and files["csv"] is None:
        raise click.UsageError("--decimal is for --csv; add --csv FILE, or leave it out")
    from ser.train.report.files import write_tables
    from ser.train.report.grouping import group_runs
    from ser.train.report.page import make_page, write_html
    from ser.train.report.terminal import report_text
    from ser.train.run_folder import find_runs
    from ser.train.sweep.search_record import find_search_records

    cells, unfinished = group_runs(find_runs(*runs), find_search_records(*runs), ours)
    names = [name.strip() for name in tables.split(",") if name.strip()]
    answer(report_text(cells, unfinished, paired, names, terminal_width()))

    # In the order in which they are named.
    requested = {form: path for form, path in files.items() if path is not None}
    if html is None and not requested:
        next_step("report", *runs, "--html", "report.html", "--open")
        return

    page = make_page(cells, unfinished)
    if html is not None:
        write_html(page, html)
        answer(f"wrote {html}")
    for form, path in requested.items():
        write_tables(page.tables, path, form, decimal)
        answer(f"wrote {path}")
    if html is not None:
        open_page(html, open_)
