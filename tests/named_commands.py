"""The commands that ser's messages name: all that stand in the code, and those of an answer."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
from click.testing import Result

from ser.cli import main
from ser.tests.command_line import ser

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = (
    "cache",
    "commands",
    "corpus",
    "disk",
    "engines",
    "export",
    "extract",
    "predict",
    "train",
    "weights",
)

# What a command in backquotes begins with.
PROGRAMS = "ser|make|pip|python|git|dask|[.]venv/bin/python"

# Texts that begin so are a whole command, which stands in backquotes elsewhere.
BARE = ("dask worker ", "ser features ")

# Stands for what the code puts in place.
FILLED = "…"

# Functions whose words are a command, and what stands before these words.
COMMAND_FUNCTIONS = {
    "ser_command": "ser",
    "next_step": "next: ser",
    "extract_command": "ser features CORPUS",
    "extract_rows_command": "ser features CORPUS",
}


def next_command(answer: Result) -> list[str]:
    """The words of the command that is printed behind `next:`, without `ser`."""
    [line] = [line for line in answer.stderr.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: "))[1:]


def commands_in(answer: Result) -> list[list[str]]:
    """The words of each `ser …` that a message has in backticks, without `ser`."""
    return [shlex.split(command)[1:] for command in re.findall(r"`(ser [^`]+)`", answer.output)]


def run_named(answer: Result, **known: object) -> list[Result]:
    """Run each `ser …` of a message, word by word as it is printed.

    `known` says what its words in capitals stand for.
    """
    answers = []
    for command in commands_in(answer):
        answers.append(ser(*[known.get(word, word) for word in command]))
    assert answers, answer.output
    return answers


def named_in_the_code() -> set[str]:
    """Each command that a message of the product may name, behind the file that holds it."""
    named = set()
    for file, node in messages_of_the_product():
        for command in _commands_of(node):
            named.add(f"{file}: {command}")
    return named


def options_in_the_code() -> set[str]:
    """Each option that a message of the product may name."""
    named = set()
    for _, node in messages_of_the_product():
        named |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+\b", _text_of(node)))
    return named


@cache
def messages_of_the_product() -> list[tuple[str, ast.expr]]:
    """Each text and call in the code, behind its file; no documentation."""
    messages = []
    paths = sorted(ROOT.glob("*.py"))
    for room in PRODUCT:
        paths += sorted((ROOT / room).rglob("*.py"))

    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped = _documentation(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                # Its pieces are no texts of their own.
                skipped |= {id(piece) for piece in node.values}
            is_message = isinstance(node, ast.Constant | ast.JoinedStr | ast.Call)
            if is_message and id(node) not in skipped:
                messages.append((path.relative_to(ROOT).as_posix(), node))
    return messages


def _commands_of(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in COMMAND_FUNCTIONS:
            words = " ".join(_text_of(word) for word in node.args)
            yield f"{COMMAND_FUNCTIONS[node.func.id]} {words}"
    else:
        text = _text_of(node)
        yield from re.findall(rf"`((?:{PROGRAMS}) [^`]*)`", text)
        if text.startswith(BARE):
            yield text


def _documentation(tree: ast.Module) -> set[int]:
    """The texts that are no message: docstrings, and the help of an option."""
    nodes = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            nodes.add(id(node.value))
        elif isinstance(node, ast.keyword) and node.arg == "help":
            nodes |= {id(part) for part in ast.walk(node.value)}
    return nodes


def _text_of(node: ast.expr) -> str:
    """A text of the code, with what is filled in marked; empty if it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(piece) for piece in node.values)
    is_filled = isinstance(node, ast.FormattedValue | ast.Name | ast.Attribute | ast.Starred)
    return FILLED if is_filled else ""


def parse(words: list[str]) -> None:
    """Have click read the words of a command, without `ser`. Raises `click.UsageError`."""
    command: click.Command = main
    name: str | None = "ser"
    context = None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=name)
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    command.make_context(name, words, parent=context)
