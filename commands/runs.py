"""`ser runs`: what lies under runs/, filtered, compared and cleared."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FILE, json_option
from .output import answer, plural, table

if TYPE_CHECKING:
    from ser.train.run_folder import Run

OPTIONS = ("features", "fusion", "labels", "protocol", "fold", "seed")

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
    from ser.train.runs import run_facts, select_runs
    from ser.train.scores.measures import HEADINGS

    listed = [run_facts(run) for run in select_runs(folders, where)]
    listed.sort(key=lambda run: (run["date"], run["run"]))
    if as_json:
        answer(listed)
        return

    for run in listed:
        run["MB"] = f"{run['bytes'] / 1e6:.1f}"
    answer(_table(listed, ["run", *OPTIONS, *HEADINGS, "date", "MB"]))
    answer(_summary(listed))


def _summary(listed: Sequence[Mapping[str, Any]]) -> str:
    """How many runs, on which stores, and how large they are."""
    stores = dict.fromkeys(run["store"] for run in listed if run["store"])
    on_stores = " and ".join(stores) or "no known store"
    unfinished = sum(not run["finished"] for run in listed)
    size = sum(run["bytes"] for run in listed)
    return (
        f"{plural(len(listed), 'run')} on {on_stores}, {unfinished} unfinished, "
        f"{size / 1e6:.1f} MB; `ser report` makes tables of them"
    )


def _table(listed: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Runs by their facts, one a line; only the columns of scores are numbers."""
    from ser.train.scores.measures import HEADINGS

    rows = []
    for run in listed:
        rows.append([run[name] for name in columns])

    headings = [HEADINGS.get(name, name) for name in columns]
    formats = [".3f" if name == "ccc" else ".2f" for name in columns]
    texts = [number for number, name in enumerate(columns) if name not in HEADINGS]
    return table(rows, headings, floatfmt=formats, disable_numparse=texts)


@runs.command("compare")
@click.argument("folders", nargs=-1, required=True, type=FILE, metavar="RUNS...")
@where_option
@json_option
def compare_runs(folders: tuple[Path, ...], where: tuple[str, ...], as_json: bool) -> None:
    """The scores of RUNS, and one line for each option or setting in which they differ: each value,
    and which runs.

    Example: ser runs compare runs --where fold="session 1"
    """
    from ser.train.runs import option_differences, run_facts, select_runs
    from ser.train.scores.measures import HEADINGS

    selected = select_runs(folders, where)
    compared = [run_facts(run) for run in selected]
    different = option_differences(selected)
    if as_json:
        names = [run["run"] for run in compared]
        scores = {}
        for metric in HEADINGS:
            scores[metric] = [run[metric] for run in compared]
        answer({"runs": names, "differences": different, **scores})
        return

    for number, run in enumerate(compared, 1):
        run[""] = number
    answer(_table(compared, ["", "run", *HEADINGS]))

    rows = []
    for key, values in different.items():
        rows.append([key, _values_with_runs(values)])
    answer(table(rows, ["", "value (runs)"], disable_numparse=True, maxcolwidths=[None, 60]))


def _values_with_runs(values: Sequence[Any]) -> str:
    """Each value with the numbers of the runs that have it: "0.001 (1 3), 0.01 (2)"."""
    numbers: dict[str, list[str]] = {}
    for number, value in enumerate(values, 1):
        numbers.setdefault(str(value), []).append(str(number))
    return ", ".join(f"{value} ({' '.join(having)})" for value, having in numbers.items())


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
    from ser.train.remove_runs import removable
    from ser.train.runs import select_runs

    named = folders
    if where:
        named = tuple(run.path for run in select_runs(folders, where))
    # All are checked before the first is removed.
    distinct = dict.fromkeys(removable(folder) for folder in named)
    _remove(list(distinct), dry_run)


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
    from ser.train.remove_runs import abandoned
    from ser.train.runs import select_runs

    _remove(abandoned(select_runs(folders), days), dry_run)


def _remove(selected: "Sequence[Run]", dry_run: bool) -> None:
    from ser.disk.folders import extent
    from ser.train.remove_runs import remove_run

    for run in selected:
        # Before it is removed: it may be the working folder.
        name = os.path.relpath(run.path)
        if dry_run:
            size, _ = extent(run.path)
            answer(f"would remove {name} ({size / 1e6:.1f} MB)")
        else:
            size = remove_run(run)
            answer(f"removed {name} ({size / 1e6:.1f} MB)")

    if not selected:
        answer("nothing to remove")
