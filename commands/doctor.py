"""`ser doctor`: what this machine has for ser, and what to do about what it lacks."""

from dataclasses import asdict
from pathlib import Path

import click

from .options import json_option, store_option
from .output import answer


@click.command()
@store_option
@json_option
def doctor(store: Path, as_json: bool) -> None:
    """Say what this machine has (cores, memory, GPU, the store's disk, weights, packages), and how to get the rest.

    \b
    Example: ser doctor --store /scratch/features
    """
    from ser.doctor import examine

    findings = examine(store)
    if as_json:
        answer({one.what: asdict(one) for one in findings})
        return
    for one in findings:
        mark = click.style("ok     ", fg="green") if one.fine else click.style("lacking", fg="yellow")
        click.echo(f"{mark} ", nl=False)
        answer(f"{one.what:<20} {one.found}" + (f"\n{'':<28} → {one.advice}" if one.advice else ""))
