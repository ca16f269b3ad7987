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
            where = "git clone https://github.com/ser-fusion/ser"
            raise WrongUse(
                f"--gpu needs a checkout's benchmarks: {where}, and run python -m benchmarks.gpu there"
            )
        ctx.exit(import_module("ser.benchmarks.gpu").main([]))
    findings = examine(store)
    if as_json:
        answer(findings)
        return
    for name, finding in findings.items():
        mark = (
            click.style("ok     ", fg="green")
            if finding["fine"]
            else click.style("lacking", fg="yellow")
        )
        click.echo(f"{mark} ", nl=False)
        answer(f"{name:<20} {finding['found']}")
        if finding["advice"]:
            answer(f"{'':<28} → {finding['advice']}")
