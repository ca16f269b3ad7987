"""`ser audit`: whether a result is what it says it is."""

from pathlib import Path

import click

from .options import FILE, json_option, open_option
from .output import answer, open_page, terminal_width


@click.command()
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="PATH...")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="SCORES",
    help="Scores that are claimed, such as ua=76.4,wa=75.2; the n-th of the n-th system.",
)
@click.option(
    "--columns",
    default="",
    metavar="WHAT=HEADING,...",
    help="What the columns are called, where ser guesses wrong: truth=y_true,id=file.",
)
@click.option("--html", type=FILE, metavar="FILE", help="Write one page for a reviewer.")
@json_option
@open_option
@click.pass_context
def audit(
    ctx: click.Context,
    paths: tuple[Path, ...],
    claims: tuple[str, ...],
    columns: str,
    html: Path | None,
    as_json: bool,
    open_: bool,
) -> None:
    """Check a result of any toolkit: what of the test part was trained on, whose truth it is,
    whether the claimed scores come out.

    PATHs are predictions, splits, histories, run folders, stores, and the corpus or a table of it.
    Exit code 3 if there is a fault.

    \b
    Examples:
      ser audit predictions.csv --claim ua=76.4,wa=75.2
      ser audit predictions.csv folds/ /data/IEMOCAP_full_release --html audit.html
      ser audit runs --json
    """
    if open_ and html is None:
        raise click.UsageError(
            "--open shows the page that --html writes: name it, such as --html audit.html"
        )
    from ser.audit.audit import audit as run_audit
    from ser.audit.in_words import audit_json, audit_text

    done = run_audit(paths, columns, claims)
    if as_json:
        answer(audit_json(done))
    else:
        answer(audit_text(done, terminal_width()))

    if html is not None:
        from ser.audit.page import write_page

        write_page(done, html)
        if not as_json:
            answer(f"wrote {html}")
        open_page(html, open_)
    if done.faults:
        ctx.exit(3)
