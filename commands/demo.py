"""`ser demo`: both stages on generated speech, in one command."""

import shlex
from importlib.util import find_spec
from pathlib import Path

import click

from ser.errors import DISTRIBUTION

from .options import FILE, open_option
from .output import answer, open_page, say

# What `ser demo` runs in a folder {0}. The sizes are small: encoders of width 64, MIT of width 64
# for 30 epochs, the dialogue model for 60.
STEPS = [
    "corpus demo {0}/corpus",
    "weights demo {0}/checkpoints",
    "features {0}/corpus --store {0}/features --model hubert={0}/checkpoints/hubert-random "
    "--model mpnet={0}/checkpoints/mpnet-random --model bert={0}/checkpoints/bert-random",
    "train --store {0}/features --out {0}/runs --features hubert+mpnet --fusion mit --epochs 30 "
    "--set d_model=64 --set heads=4 --set queries=8 --set lr=1e-3 "
    "--set standardise_audio=true --set standardise_text=true",
    "train --store {0}/features --out {0}/runs --features is13+bert --fusion lgf-add "
    "--loss perspective --epochs 60 --set standardise_text=true",
    "report {0}/runs --html {0}/report.html",
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
    steps = STEPS
    if find_spec("opensmile") is None:
        say(
            "openSMILE is not installed: the second model takes logmel in place of is13; "
            f"`pip install '{DISTRIBUTION}[smile]'` adds it",
            err=True,
        )
        steps = [step.replace("is13+bert", "logmel+bert") for step in STEPS]

    for step in steps:
        words = shlex.split(step.format(shlex.quote(str(folder))))
        say(f"\n$ {shlex.join(['ser', *words])}", err=True)
        exit_code = ser.main(words, prog_name="ser", standalone_mode=False)
        # 3: is13 was left out.
        left_out_alone = exit_code == 3 and steps is not STEPS
        if exit_code and not left_out_alone:
            ctx.exit(exit_code)

    page = folder / "report.html"
    answer(
        f"the page: {page} · "
        "next, with a corpus of your own: ser corpus show PATH, ser features PATH"
    )
    open_page(page, open_)
