"""`ser corpus`: inspect a corpus before extracting from it, or write the synthetic one."""

from pathlib import Path
from typing import Any

import click

from ser.extract.config import ExtractionConfig

from .options import FILE, config_options, json_option
from .output import answer, next_step, plural


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
    from ser.extract.corpora.scan import read_corpus

    scan = read_corpus(path, format)
    facts = summary(scan)
    counts = {
        name: value for name, value in facts.items() if name not in ("problems", "differences")
    }
    lines = [f"{name:<12} {_count_text(value)}" for name, value in counts.items()]
    lines += [f"problem      {problem}" for problem in scan.problems]
    lines += [plural(len(scan.problems), "problem")]
    lines += [f"differs from the release: {difference}" for difference in facts["differences"]]
    answer(facts if as_json else "\n".join(lines))
    if facts["differences"] or facts["problems"]:
        ctx.exit(1)
    if not as_json:
        next_step("features", path, *(["--format", format] if format else []))


def _count_text(value: Any) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{key} {count}" for key, count in value.items())
    return "; ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
