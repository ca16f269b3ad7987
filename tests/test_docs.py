"""What the documentation says is so: every block runs, every option and message exists.

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
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            found.append(words)
    return found


@pytest.fixture
def registries() -> Iterator[None]:
    """What a page registers is gone after it."""
    with patch.dict(FEATURES), patch.dict(FUSIONS), patch.dict(FORMATS):
        yield


def pages_that_run() -> list[str]:
    """The pages with a block that is run."""
    languages = {page: {block.language for block in blocks(page)} for page in PAGES}
    return [page for page in PAGES if languages[page] & RUN]


@pytest.mark.parametrize("page", pages_that_run())
def test_every_block_of_the_page_runs(
    page: str,
    newcomer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    registries: None,
    short_demo: None,
    undrawn: None,
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
            run_commands(block)


def run_commands(block: Block) -> None:
    """Run the commands of a shell block; each must work."""
    for words in commands(block.text):
        assert words[0] == "ser", f"{block.where}: only ser is run here, not {words[0]}"

        done = ser(*as_here(words[1:]))
        where = f"{block.where}: {shlex.join(words)}\n{done.output}\n{done.exception!r}"
        assert done.exit_code == 0, where
        if words[:3] == ["ser", "corpus", "demo"]:
            shrink(Path(words[3]))


def as_here(words: list[str]) -> list[str]:
    """The command with what is on this machine for a path on the reader's.

    One epoch of one fold shows as well as many that it runs.
    """
    changed = []
    previous = ""
    for word in words:
        option, equals, value = word.rpartition("=")
        if previous == "--epochs":
            changed.append("1")
        else:
            changed.append(f"{option}{equals}{STAND_INS.get(value, value)}")
        previous = word

    if words[:1] == ["train"] and "--folds" not in words:
        changed += ["--folds", "1"]
    return changed


def all_blocks() -> list[Block]:
    found = []
    for page in PAGES:
        found += blocks(page)
    return found


def test_each_block_says_its_language_and_its_file() -> None:
    for block in all_blocks():
        assert block.language in RUN | {"text", "mermaid"}, f"{block.where}: what language is this?"
        if block.language in ("toml", "csv"):
            assert block.name, f"{block.where}: name the file above, as `mine.toml`:"


def test_what_is_not_run_says_why_and_would_be_understood() -> None:
    for block in all_blocks():
        if not block.text.startswith(NOT_RUN):
            continue
        first_line = block.text.splitlines()[0]
        assert len(first_line) > len(NOT_RUN) + 5, f"{block.where}: why is it not run?"
        if block.language != "sh":
            continue
        for words in commands(block.text):
            if words[0] == "ser":
                check_options(words[1:], block.where)


def test_most_blocks_are_run() -> None:
    programs = [block for block in all_blocks() if block.language in ("sh", "python")]
    not_run = [block for block in programs if block.text.startswith(NOT_RUN)]
    assert len(not_run) <= len(programs) / 5


def check_options(words: list[str], where: str) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        assert words[0] in command.commands, f"{where}: no command {words[0]}"
        command = command.commands[words[0]]
        words = words[1:]

    known: set[str] = set()
    for parameter in command.params:
        known.update(parameter.opts)
    for word in words:
        if word.startswith("--"):
            assert word in known, f"{where}: {command.name} has no option {word}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert target.startswith("https://") or (DOCS / target).exists(), f"{page}: {target}"


def test_the_readme_leads_to_each_page() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page == "README.md" or f"]({page})" in text, f"docs/README.md lacks {page}"


def test_every_file_that_the_architecture_names_is_there() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.(?:py|md)|[\w/]+/)`", text)
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
    text = command.help or ""
    examples = []
    for line in text.splitlines():
        if f" {name} " in f" {line} " or line.rstrip().endswith(f" {name}"):
            examples.append(line)

    assert "Example" in text, f"{name} --help shows no example"
    assert examples, f"{name} --help shows no example"
    for line in examples:
        check_options(shlex.split(line.partition("ser ")[2]), f"{name} --help")


def messages() -> str:
    """What the source says, without docstrings; a message over several lines is one."""
    source = []
    for path in PATHS:
        text = path.read_text(encoding="utf-8")
        source.append(re.sub(r'""".*?"""', "", text, flags=re.S))
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(source)).replace("`", "")


def test_every_message_in_troubleshooting_is_one_that_ser_says() -> None:
    said = messages()
    lines = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) > 15
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row.split("|")[1]):
            assert message in said, f"nothing in ser says {message!r}"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        pytest.param("featurs corpus", "features", id="a command"),
        pytest.param("cache lst", "list", id="a command of a group"),
        pytest.param("train --fusin mit", "--fusion", id="an option"),
        pytest.param("train --fusion mitt --settings", "did you mean mit?", id="a fusion"),
    ],
)
def test_unknown_names_suggest_the_nearest(words: str, nearest: str) -> None:
    done = ser(*words.split())

    assert done.exit_code == 2
    assert nearest in done.output, done.output
