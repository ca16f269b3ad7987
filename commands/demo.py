"""`ser demo`: both stages on generated speech, in one command."""

import shlex
import tomllib
from pathlib import Path

import click

from .options import FILE, open_option
from .output import answer, open_page, say

STEPS: list[str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))[
    "steps"
]


@click.command()
@click.argument("folder", type=FILE, default=Path("demo"), metavar="[DIR]")
@open_option
@click.pass_context
def demo(ctx: click.Context, folder: Path, open_: bool) -> None:
    """Write a small synthetic corpus to DIR (default: demo), extract five features, train two
    models, report.

    It takes some minutes and no network, and prints each command before it runs it. What is there
    already is kept: a second call goes on where a first one stopped. The speech is generated and
    the encoders have random weights: its scores show that the pipeline works, and say nothing about
    people.

    Example: ser demo --open
    """
    ser = ctx.find_root().command
    for step in STEPS:
        words = shlex.split(step.format(shlex.quote(str(folder))))
        say(f"\n$ {shlex.join(['ser', *words])}", err=True)
        if code := ser.main(words, prog_name="ser", standalone_mode=False):
            ctx.exit(code)
    page = folder / "report.html"
    answer(
        f"the page: {page} · next, with a corpus of your own: ser corpus show PATH, ser features PATH"
    )
    open_page(page, open_)
