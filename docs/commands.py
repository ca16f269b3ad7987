"""Write docs/commands.md from the commands themselves: .venv/bin/python docs/commands.py."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from ser.cli import main

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Every command

Written by `docs/commands.py` from the commands' own help. Exit codes: 0 done · 1 failed · 2 wrong use ·
3 finished, with quarantined utterances. `--json` prints one JSON value on standard output; progress goes to standard
error.
"""


def page() -> str:
    """The page's text."""
    return "\n".join([HEAD, *sections(main, "ser")])


def sections(command: click.Command, name: str) -> Iterator[str]:
    """The section of a command, or those of the commands in a group: usage, help, and a table of
    the options.
    """
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from sections(inner, f"{name} {inner.name}")
        return
    context = click.Context(
        command, info_name=name, terminal_width=10_000, max_content_width=10_000
    )
    yield f"## `{' '.join([name, *command.collect_usage_pieces(context)])}`\n"
    # The examples end the help; click keeps the lines of several as they are, for a backspace
    # before them. They name corpora and runs that the tests lack.
    text, examples = re.split(
        r"\n(?:\x08\n)?Examples?:\s*", inspect.cleandoc(command.help or ""), maxsplit=1
    )
    lines = [line.strip() for line in examples.splitlines()]
    yield "\n".join([text.strip(), "```text", *lines, "```", ""])
    rows = [row for option in command.params if (row := option.get_help_record(context))]
    if rows:
        yield "| option | |\n|---|---|"
        for option, help_ in (
            (" ".join(cell.split()).replace("|", "\\|") for cell in row) for row in rows
        ):
            yield f"| `{option}` | {help_} |"
        yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
