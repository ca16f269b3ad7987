"""`ser doctor`: what this machine has for ser, and what to do about what it lacks."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from .options import json_option, store_option
from .output import answer


@click.command()
@store_option
@json_option
@click.option(
    "--gpu", is_flag=True, help="Check the GPU's numbers and times, in five minutes, into gpu.json."
)
@click.pass_context
def doctor(ctx: click.Context, store: Path, as_json: bool, gpu: bool) -> None:
    """Say what this machine has (cores, memory, GPU, the store's disk, weights, licences), and how
    to get the rest.

    Example: ser doctor --store /scratch/features
    """
    from ser.doctor import examine
    from ser.errors import WrongUse

    if gpu:
        if find_spec("ser.benchmarks") is None:
            raise WrongUse(
                "--gpu needs a checkout's benchmarks: "
                "`git clone https://github.com/ser-fusion/ser`, `make install` and "
                "`.venv/bin/python -m benchmarks.gpu` there"
            )
        ctx.exit(import_module("ser.benchmarks.gpu").main([]))

    findings = examine(store)
    if as_json:
        facts = {}
        for finding in findings:
            facts[finding.subject] = {
                "what": finding.subject,
                "found": finding.state,
                "fine": finding.fine,
                "advice": finding.advice,
            }
        answer(facts)
        return

    for finding in findings:
        if finding.fine:
            mark = click.style("ok     ", fg="green")
        else:
            mark = click.style("lacking", fg="yellow")
        click.echo(f"{mark} ", nl=False)
        answer(f"{finding.subject:<20} {finding.state}")
        if finding.advice:
            answer(f"{'':<28} → {finding.advice}")
