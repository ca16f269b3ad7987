"""What the documentation says is so: every block runs, every command and option has its line, every
message exists.

A block that begins with `# not run in the tests: …` is not run. Blocks of a page run one after the
other in one folder as the quick start leaves it; `ser …` runs in this process, Python blocks share
one namespace.
"""

import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import click
import pytest

from ser.cli import main
from ser.extract.corpora import FORMATS
from ser.extract.registry import FEATURES
from ser.tests.command_line import ser
from ser.tests.newcomer import shrink
from ser.tests.test_house import PATHS
from ser.train.models import FUSIONS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
NOT_RUN = "# not run in the tests: "
RUN = {"sh", "python", "toml", "csv"}
STAND_INS = {
    "/data/IEMOCAP_full_release": "demo/corpus",
    "/models/hubert-base-ls960": "demo/checkpoints/hubert-random",
    "/models/mpnet-base": "demo/checkpoints/mpnet-random",
    "/models/bert-base-uncased": "demo/checkpoints/bert-random",
}


FENCED = re.compile(r"(?:^`([\w./-]+)`:\n)?^```(\w*)\n(.*?)\n?^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: page and line, its language, the file name above it, and its text."""

    where: str
    language: str
    name: str | None
    text: str


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in FENCED.finditer(text):
        line = text.count("\n", 0, found.start(3))
        yield Block(f"{page}:{line}", found[2], found[1], found[3])


def commands(text: str) -> list[list[str]]:
    """The command lines of a shell block, continuation lines joined, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def registries() -> Iterator[None]:
    """What a page registers is gone after it."""
    with patch.dict(FEATURES), patch.dict(FUSIONS), patch.dict(FORMATS):
        yield


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language in RUN for b in blocks(page))]
)
def test_every_block_of_the_page_runs(
    page: str, newcomer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if page != "quick-start.md":
        shutil.copytree(newcomer, "demo")
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.text.startswith(NOT_RUN) or block.language not in RUN:
            continue
        if block.name:
            Path(block.name).write_text(block.text + "\n", encoding="utf-8")
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
        elif block.language == "sh":
            for words in commands(block.text):
                assert words[0] == "ser", f"{block.where}: only ser is run here, not {words[0]}"
                done = ser(*_stand_in(words[1:]))
                assert done.exit_code == 0, (
                    f"{block.where}: {shlex.join(words)}\n{done.output}\n{done.exception!r}"
                )
                if words[:3] == ["ser", "corpus", "demo"]:
                    shrink(Path(words[3]))


def _stand_in(words: list[str]) -> Iterator[str]:
    """What is on this machine for a path on the reader's; one epoch of one fold shows as well as
    many that it runs.
    """
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.rpartition("=")
        yield "1" if before == "--epochs" else f"{option}{equals}{STAND_INS.get(value, value)}"
    if words[:1] == ["train"] and "--folds" not in words:
        yield from ("--folds", "1")


def test_blocks_run_or_say_why_not_and_would_be_understood() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    for block in found:
        assert block.language in RUN | {"text", "mermaid"}, f"{block.where}: what language is this?"
        assert block.name or block.language not in ("toml", "csv"), (
            f"{block.where}: name the file above, as `mine.toml`:"
        )
        if block.text.startswith(NOT_RUN):
            assert len(block.text.splitlines()[0]) > len(NOT_RUN) + 5, (
                f"{block.where}: why is it not run?"
            )
            for words in commands(block.text) if block.language == "sh" else ():
                if words[0] == "ser":
                    check_options(words[1:], block.where)
    found = [block for block in found if block.language in ("sh", "python")]
    assert sum(block.text.startswith(NOT_RUN) for block in found) <= len(found) / 5


def check_options(words: list[str], where: str) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        assert words[0] in command.commands, f"{where}: no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for param in command.params for option in param.opts}
    for word in words:
        assert not word.startswith("--") or word in known, (
            f"{where}: {command.name} has no option {word}"
        )


def test_links_lead_somewhere_and_the_readme_leads_to_each_page() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", (DOCS / page).read_text(encoding="utf-8")):
            assert target.startswith("https://") or (DOCS / target).exists(), f"{page}: {target}"
        assert page == "README.md" or f"]({page})" in (DOCS / "README.md").read_text(), (
            f"docs/README.md lacks {page}"
        )


def test_every_file_that_the_architecture_names_is_there() -> None:
    named = re.findall(
        r"`([\w/]+\.(?:py|md)|[\w/]+/)`", (DOCS / "architecture.md").read_text(encoding="utf-8")
    )
    root = DOCS.parent
    rooms = [root, root / "cache/tools", root / "extract/corpora", *root.glob("train/*/")]
    rooms += [path for path in root.glob("*/") if (path / "__init__.py").exists()]
    assert len(named) > 60
    for name in named:
        assert any((room / name).exists() for room in rooms), f"there is no {name}"


def test_the_commands_page_is_what_the_commands_say() -> None:
    written = runpy.run_path(str(DOCS / "commands.py"))["page"]()
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == written, (
        "run .venv/bin/python docs/commands.py"
    )


def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from leaves(inner, f"{name} {inner.name}")
    else:
        yield name, command


@pytest.mark.parametrize(
    ("name", "command"), [pytest.param(*leaf, id=leaf[0]) for leaf in leaves(main, "ser")]
)
def test_every_command_shows_an_example(name: str, command: click.Command) -> None:
    help_ = command.help or ""
    examples = [
        line
        for line in help_.splitlines()
        if f" {name} " in f" {line} " or line.rstrip().endswith(f" {name}")
    ]
    assert "Example" in help_ and examples, f"{name} --help shows no example"
    for line in examples:
        check_options(shlex.split(line.partition("ser ")[2]), f"{name} --help")


def test_every_message_in_troubleshooting_is_one_that_ser_says() -> None:
    source = "\n".join(
        re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.S) for path in PATHS
    )
    # Literals that continue on the next line are one message.
    said = re.sub(r'"\s*\n\s*f?"', "", source).replace("`", "")
    rows = [
        line
        for line in (DOCS / "troubleshooting.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    assert len(rows) > 15
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row.split("|")[1]):
            assert message in said, f"nothing in ser says {message!r}"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("featurs corpus", "features"),
        ("cache lst", "list"),
        ("train --fusin mit", "--fusion"),
        ("train --fusion mitt --settings", "did you mean mit?"),
    ],
)
def test_unknown_names_suggest_the_nearest(words: str, nearest: str) -> None:
    done = ser(*words.split())
    assert done.exit_code == 2 and nearest in done.output, done.output
