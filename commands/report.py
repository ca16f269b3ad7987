"""`ser report`: finished runs as tables on the terminal, in a paper, and as a page."""

from pathlib import Path
from typing import Any

import click

_file = click.Path(path_type=Path)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=_file)
@click.option("--html", type=_file, metavar="FILE", help="Write one self-contained page: tables, plots, a look inside.")
@click.option("--latex", type=_file, metavar="FILE", help="Write every table for LaTeX (booktabs).")
@click.option("--markdown", type=_file, metavar="FILE", help="Write every table as Markdown.")
@click.option("--csv", type=_file, metavar="FILE", help="Write every table as CSV.")
@click.option("--paired", is_flag=True, help="Test whether the cells differ: McNemar, paired t and Wilcoxon.")
def report(runs: tuple[Path, ...], html: Path | None, paired: bool, **files: Any) -> None:
    """Tables of RUNS (run folders, or folders of them), one line per configuration, with 95 % intervals.

    \b
    Examples:
      ser report runs
      ser report runs --html report.html --latex tables.tex
      ser report runs/3f2a… runs/77b1… --paired
    """
    from ser.train.report.page import report_tables, write_html, write_tables
    from ser.train.report.terminal import report_text
    from ser.train.run_folder import find_runs

    found = find_runs(*runs)
    click.echo(report_text(found, paired))
    if html:
        write_html(found, html)
        click.echo(f"wrote {html}")
    for form, path in files.items():
        if path:
            write_tables(report_tables(found), path, form)  # type: ignore[arg-type]
            click.echo(f"wrote {path}")
