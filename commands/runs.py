"""`ser runs`: what lies under runs/, filtered, compared and cleared."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click

from .options import FILE, json_option
from .output import answer, plural, safe, terminal_width

if TYPE_CHECKING:
    from ser.train.report.table import Table
    from ser.train.run_folder import Run

# In the order of the columns; those in which all runs are alike are said once.
OPTIONS = ("fusion", "features", "corpus", "labels", "protocol", "fold", "seed")

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

    listed = [run_facts(run) for run in select_runs(folders, where)]
    listed.sort(key=lambda run: (run["date"], run["run"]))
    if as_json:
        answer(listed)
        return

    answer(runs_text(listed, terminal_width()))


def runs_text(listed: Sequence[Mapping[str, Any]], width: int) -> str:
    """The runs as a table of at most `width` letters a line, and what they have in common."""
    from ser.train.report.fitted_table import fitted, without_what_has_no_room
    from ser.train.scores.measures import HEADINGS

    columns, alike = _options_apart(listed)
    columns += [name for name in HEADINGS if _any_has(listed, name)]
    folder = _common_folder(listed)
    whole = _runs_table(listed, ["run", *columns, "date", "MB"], folder)
    shown, left_out = without_what_has_no_room(
        whole,
        width,
        spare=["MB", "date", HEADINGS["macro_f1"]],
        at_need=[HEADINGS["ccc"], HEADINGS["wa"]],
    )

    words = []
    if folder:
        words.append(f"in {folder}{os.sep}")
    if alike:
        words.append("all: " + " · ".join(f"{name} {value}" for name, value in alike.items()))
    if left_out:
        words.append(f"no room for {', '.join(left_out)}: --json has them")
    words.append(_summary(listed))

    filled = [fill(safe(line), width, break_on_hyphens=False) for line in words]
    return "\n\n".join([fitted(shown, width), *filled])


def _common_folder(listed: Sequence[Mapping[str, Any]]) -> str:
    """The folder of all runs; "" where they are in several, or in the working folder."""
    folders = {str(Path(run["run"]).parent) for run in listed}
    return "" if len(folders) > 1 or os.curdir in folders else folders.pop()


def _any_has(listed: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(run[name] is not None for run in listed)


def _options_apart(listed: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, str]]:
    """The options in which the runs differ, and the others with the value that all runs have."""
    differing = []
    alike = {}
    for name in OPTIONS:
        values = {_shown_option(run, name, listed) for run in listed}
        if len(values) > 1 or len(listed) == 1:
            differing.append(name)
        else:
            alike[name] = values.pop()
    return differing, alike


def _shown_option(run: Mapping[str, Any], name: str, listed: Sequence[Mapping[str, Any]]) -> str:
    """An option's value; features have their fingerprints only where these tell runs apart."""
    value = str(run[name])
    if name != "features":
        return value
    short = _without_fingerprints(value)
    same_names = {other[name] for other in listed if _without_fingerprints(other[name]) == short}
    return short if len(same_names) == 1 else value


def _without_fingerprints(features: str) -> str:
    """The names alone.

    >>> _without_fingerprints("hubert@e0fe+mpnet@cd4c")
    'hubert+mpnet'
    """
    return re.sub(r"@[0-9a-f]+", "", features)


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


def _runs_table(
    listed: Sequence[Mapping[str, Any]], columns: Sequence[str], folder: str = ""
) -> "Table":
    """Runs by their facts, one a line, in these columns; those in the folder by their name."""
    from ser.train.report.formats import COUNT, FINE, PERCENT, TEXT, Format
    from ser.train.report.table import Column, Table
    from ser.train.scores.measures import HEADINGS

    formats = {"MB": Format("{:.1f}"), "seed": COUNT, "": COUNT}
    for metric in HEADINGS:
        formats[metric] = FINE if metric == "ccc" else PERCENT

    rows = []
    for run in listed:
        row = {}
        for name in columns:
            row[HEADINGS.get(name, name)] = _shown_fact(run, name, listed)
        if folder:
            row["run"] = os.path.relpath(run["run"], folder)
        rows.append(row)
    return Table(
        name="runs",
        caption="",
        columns=[Column(HEADINGS.get(name, name), formats.get(name, TEXT)) for name in columns],
        rows=rows,
    )


def _shown_fact(run: Mapping[str, Any], name: str, listed: Sequence[Mapping[str, Any]]) -> Any:
    """What a column of the list shows of a run."""
    if name == "MB":
        return run["bytes"] / 1e6
    if name == "date":
        # The zone is UTC, and a date with a space could be broken there.
        return run["date"].partition("+")[0]
    if name == "features":
        return _shown_option(run, name, listed)
    return run[name]


@runs.command("compare")
@click.argument("folders", nargs=-1, required=True, type=FILE, metavar="RUNS...")
@where_option
@json_option
def compare_runs(folders: tuple[Path, ...], where: tuple[str, ...], as_json: bool) -> None:
    """The scores of RUNS, and one line for each option or setting in which they differ: each value,
    and which runs.

    Example: ser runs compare runs --where fold="session 1"
    """
    from ser.train.report.fitted_table import fitted
    from ser.train.report.formats import TEXT
    from ser.train.report.table import Table, columns_of
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

    width = terminal_width()
    for number, run in enumerate(compared, 1):
        run[""] = number
    scores_of_any = [metric for metric in HEADINGS if _any_has(compared, metric)]
    folder = _common_folder(compared)
    answer(fitted(_runs_table(compared, ["", "run", *scores_of_any], folder), width) + "\n")
    if folder:
        answer(fill(safe(f"in {folder}{os.sep}"), width, break_on_hyphens=False) + "\n")

    rows = []
    for key, values in different.items():
        rows.append({"option": key, "value (runs)": _values_with_runs(values)})
    if not rows:
        answer("they differ in no option or setting")
        return
    columns = columns_of(TEXT, ["option", "value (runs)"])
    answer(fitted(Table("differences", "", columns, rows), width))


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
