"""`ser doctor`: what this machine has for ser, and what to do about what it lacks."""

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command()
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path("features"),
    show_default=True,
    help="Where features will lie: whose disk is looked at.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(store: Path, as_json: bool) -> None:
    """Say what this machine has (cores, memory, GPU, disk, weights, packages), and what to do about what it lacks.

    \b
    Example: ser doctor --store /scratch/features
    """
    from ser.doctor import examine

    findings = examine(store)
    if as_json:
        click.echo(json.dumps({one.what: asdict(one) for one in findings}, ensure_ascii=False))
        return
    for one in findings:
        mark = click.style("ok     ", fg="green") if one.fine else click.style("lacking", fg="yellow")
        click.echo(f"{mark} {one.what:<20} {one.found}")
        if one.advice:
            click.echo(f"{'':<28} → {one.advice}")
