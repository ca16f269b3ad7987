"""`ser corpus`: inspect a corpus before extracting from it, or write the synthetic one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ser.extract.config import ExtractionConfig

from .options import FILE, config_options, json_option
from .output import answer, next_step, plural

if TYPE_CHECKING:
    from ser.extract.corpora.scan import Scan


@click.group()
def corpus() -> None:
    """Inspect a corpus, or write a small synthetic one."""


@corpus.command()
@click.argument("folder", type=FILE, metavar="DIR")
def demo(folder: Path) -> None:
    """Write a small synthetic corpus to DIR in the IEMOCAP release layout.

    The speech is generated: scores on it show that the pipeline works, and say nothing about
    people.

    Example: ser corpus demo demo/corpus
    """
    from ser.extract.corpora.demo import write_demo

    write_demo(folder)
    answer(f"wrote the synthetic demo corpus to {folder}")
    next_step("corpus", "show", folder)


@corpus.command()
@click.argument("path", type=FILE)
@config_options(ExtractionConfig, "format")
@json_option
@click.pass_context
def show(ctx: click.Context, path: Path, format: str | None, as_json: bool) -> None:
    """Count a corpus and name every problem in it; exit 1 if its published counts are not met.

    Example: ser corpus show /data/IEMOCAP_full_release --json
    """
    from ser.extract.corpora.counts import summary
    from ser.extract.corpora.scan import scan_corpus

    scan = scan_corpus(path, format)
    facts = summary(scan)
    if as_json:
        answer(facts)
    else:
        answer("\n".join(_lines(facts, scan)))

    if facts["differences"] or facts["problems"]:
        ctx.exit(1)
    if not as_json:
        chosen_format = ["--format", format] if format else []
        next_step("features", path, *chosen_format)


def _lines(facts: dict[str, Any], scan: "Scan") -> list[str]:
    """What is printed of a corpus."""
    from ser.extract.corpora.alike import problem_lines

    lines = []
    for name, value in facts.items():
        if name not in ("problems", "differences"):
            lines.append(f"{name:<12} {_text_of(value)}")

    problems = problem_lines(scan.problems)
    for problem in problems:
        lines.append(f"problem      {problem}")
    count = plural(len(scan.problems), "problem")
    if len(problems) < len(scan.problems):
        count += "; --json names each"
    lines.append(count)

    for difference in facts["differences"]:
        lines.append(f"differs from the release: {difference}")
    return lines


def _text_of(value: Any) -> str:
    """A count, the counts of a group, or a list of warnings, in one line."""
    if isinstance(value, dict):
        return " · ".join(f"{key} {count}" for key, count in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return str(value)
