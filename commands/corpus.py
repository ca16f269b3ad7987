"""`ser corpus`: look at a corpus before extracting from it, or write the synthetic one."""

import json
from pathlib import Path
from typing import Any

import click

from ser.extract.corpora import FORMATS


@click.group()
def corpus() -> None:
    """Look at a corpus, or write a small synthetic one."""


@corpus.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
def demo(folder: Path) -> None:
    """Write a small synthetic corpus to DIR in the IEMOCAP release layout.

    The speech is generated: scores on it show that the pipeline works, and say nothing about people.

    \b
    Example: ser corpus demo demo/corpus
    """
    from ser.extract.corpora.demo import write_demo

    write_demo(folder)
    click.echo(f"wrote the synthetic demo corpus to {folder}; next: ser corpus show {folder}")


@corpus.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(FORMATS), help="Layout on disk; detected by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, path: Path, format: str | None, as_json: bool) -> None:
    """Count a corpus and name every problem in it; exit 1 if IEMOCAP's known counts are not met.

    \b
    Example: ser corpus show /data/IEMOCAP_full_release --json
    """
    from ser.extract.corpora.counts import differences, summary
    from ser.extract.corpora.scan import read_corpus

    scan = read_corpus(path, format)
    facts = summary(scan)
    differs = differences(scan)
    if as_json:
        click.echo(json.dumps({**facts, "differences": differs}, ensure_ascii=False))
    else:
        _print(facts)
        for problem in scan.problems:
            click.echo(f"problem      {problem}")
        click.echo(f"{len(scan.problems)} problems")
        for line in differs:
            click.echo(f"differs from the IEMOCAP release: {line}")
    if differs or facts["problems"]:
        ctx.exit(1)


def _print(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if name == "problems":
            continue
        if isinstance(value, dict):
            value = " · ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, list):
            value = "; ".join(map(str, value)) or "none"
        click.echo(f"{name:<12} {value}")
