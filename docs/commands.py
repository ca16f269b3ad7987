"""Write docs/commands.md from the commands themselves: .venv/bin/python docs/commands.py."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from ser.cli import main

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Every command

Written by `docs/commands.py` from the commands' own help. Exit codes: 0 done · 1 failed · \
2 wrong use ·
3 finished, with quarantined utterances, or, of `ser audit`, with a fault. \
`--json` prints one JSON value on standard output; \
progress goes to standard
error.
"""


def page() -> str:
    """The page's text."""
    return "\n".join([HEAD, *sections(main, "ser")])


def sections(command: click.Command, name: str) -> Iterator[str]:
    """The section of a command, or those of the commands in a group."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from sections(inner, f"{name} {inner.name}")
        return

    context = click.Context(
        command, info_name=name, terminal_width=10_000, max_content_width=10_000
    )
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    yield f"## `{usage}`\n"
    yield _help(command)

    rows = []
    for option in command.params:
        # An argument stands in the usage; whether it has a record too depends on click's version.
        record = option.get_help_record(context)
        if isinstance(option, click.Option) and record is not None:
            rows.append(_table_row(*record))
    if rows:
        yield "| option | |\n|---|---|"
        yield from rows
        yield ""


def _help(command: click.Command) -> str:
    """What a command does, and its examples as text: they name corpora and runs that tests lack."""
    # The examples end the help; click keeps the lines of several as they are, for a backspace
    # before them.
    text, examples = re.split(
        r"\n(?:\x08\n)?Examples?:\s*", inspect.cleandoc(command.help or ""), maxsplit=1
    )
    lines = [line.strip() for line in examples.splitlines()]
    return "\n".join([text.strip(), "```text", *lines, "```", ""])


def _table_row(option: str, help_: str) -> str:
    option = " ".join(option.split()).replace("|", "\\|")
    help_ = " ".join(help_.split()).replace("|", "\\|")
    return f"| `{option}` | {help_} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
