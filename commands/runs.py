"""`ser runs`: what lies under runs/, filtered, compared and cleared."""

import os
from pathlib import Path
from typing import Any

import click

from .options import FILE, json_option
from .output import answer, plural, table

HEADINGS = {"ua": "UA", "wa": "WA", "macro_f1": "macro-F1", "ccc": "mean CCC"}
where_option = click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only these, such as fusion=mit, features=hubert, seed=0 or lr=1e-4. Repeatable.",
)
dry_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be removed, and remove nothing."
)
folders_argument = click.argument(
    "folders", nargs=-1, type=FILE, default=(Path("runs"),), metavar="[RUNS]..."
)


@click.group(invoke_without_command=True)
@click.pass_context
def runs(ctx: click.Context) -> None:
    """List, filter, compare and remove trained runs; by itself as `ser runs list`."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@runs.command("list")
@folders_argument
@where_option
@json_option
def list_(folders: tuple[Path, ...], where: tuple[str, ...], as_json: bool) -> None:
    """One line for each run in RUNS (run folders, or folders of them; default: runs), the newest
    last.

    \b
    Examples:
      ser runs list --where fusion=mit --where features=hubert
      ser runs list runs/seeds --json
    """
    from ser.train.runs import facts, select

    listed = sorted(map(facts, select(folders, where)), key=lambda run: (run["date"], run["run"]))
    if as_json:
        answer(listed)
        return
    columns = [
        "run",
        "features",
        "fusion",
        "labels",
        "protocol",
        "fold",
        "seed",
        *HEADINGS,
        "date",
        "MB",
    ]
    answer(_table([{**run, "MB": f"{run['bytes'] / 1e6:.1f}"} for run in listed], columns))
    size, unfinished = (
        sum(run["bytes"] for run in listed),
        sum(not run["finished"] for run in listed),
    )
    stores = (
        " and ".join(dict.fromkeys(run["store"] for run in listed if run["store"]))
        or "no known store"
    )
    count = (
        f"{plural(len(listed), 'run')} on {stores}, {unfinished} unfinished, {size / 1e6:.1f} MB"
    )
    answer(f"{count}; `ser report` makes tables of them")


def _table(runs: list[dict[str, Any]], columns: list[str]) -> str:
    """Runs by their facts, one a line."""
    rows = [[run[name] for name in columns] for run in runs]
    digits = [".3f" if name == "ccc" else ".2f" for name in columns]
    texts = [i for i, name in enumerate(columns) if name not in HEADINGS]
    return table(
        rows,
        [HEADINGS.get(name, name) for name in columns],
        floatfmt=digits,
        disable_numparse=texts,
    )


@runs.command()
@click.argument("folders", nargs=-1, required=True, type=FILE, metavar="RUNS...")
@where_option
@json_option
def compare(folders: tuple[Path, ...], where: tuple[str, ...], as_json: bool) -> None:
    """The scores of RUNS, and one line for each option or setting in which they differ: each value,
    and which runs.

    Example: ser runs compare runs --where fold="session 1"
    """
    from ser.train.runs import differences, facts, select

    selected = select(folders, where)
    differs = differences(selected)
    compared = [{"": number, **facts(run)} for number, run in enumerate(selected, 1)]
    if as_json:
        scores = {name: [run[name] for run in compared] for name in ("run", *HEADINGS)}
        answer({"runs": scores.pop("run"), "differences": differs, **scores})
        return
    answer(_table(compared, ["", "run", *HEADINGS]))
    lines = []
    for key, values in differs.items():
        numbers: dict[str, list[str]] = {}  # of the runs, by value
        for number, value in enumerate(values, 1):
            numbers.setdefault(str(value), []).append(str(number))
        lines.append([key, ", ".join(f"{value} ({' '.join(of)})" for value, of in numbers.items())])
    answer(table(lines, ["", "value (runs)"], disable_numparse=True, maxcolwidths=[None, 60]))


@runs.command()
@click.argument("folders", nargs=-1, required=True, type=FILE, metavar="RUN...")
@where_option
@dry_option
def remove(folders: tuple[Path, ...], where: tuple[str, ...], dry_run: bool) -> None:
    """Remove run folders with all that they hold; with --where, those in RUN (folders of runs too)
    that match.

    \b
    Examples:
      ser runs remove runs/3f2a91c07b5e8d64
      ser runs remove runs --where fusion=mit --where lr=1e-4 --dry-run
    """
    from ser.train.runs import check, select

    named = [run.path for run in select(folders, where)] if where else folders
    _remove(list(dict.fromkeys(check(folder) for folder in named)), dry_run)


@runs.command()
@folders_argument
@click.option(
    "--days",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Since the last change.",
)
@dry_option
def prune(folders: tuple[Path, ...], days: float, dry_run: bool) -> None:
    """Remove the unfinished runs in RUNS (default: runs) that no process trains and that have not
    changed for long.

    Example: ser runs prune --days 7 --dry-run
    """
    from ser.train.runs import select, unfinished

    _remove(list(unfinished(select(folders), days)), dry_run)


def _remove(runs: list[Any], dry_run: bool) -> None:
    from ser.disk.folders import extent
    from ser.train.runs import remove as remove_run

    for run in runs:
        name = os.path.relpath(run.path)  # it may be the working folder
        freed = extent(run.path)[0] if dry_run else remove_run(run)
        answer(f"{'would remove' if dry_run else 'removed'} {name} ({freed / 1e6:.1f} MB)")
    if not runs:
        answer("nothing to remove")
